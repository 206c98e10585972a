"""The page is built from the domain's lexicon, not from a copy that drifts."""

from node.domain import lexicon
from review_ui.lexicon import PATH, build_lexicon, render


def test_the_page_has_the_lexicon_of_the_domain():
    assert PATH.read_text("utf-8") == render(), "run `python -m review_ui.lexicon`"


def test_every_term_has_both_languages_and_every_follow_up_of_a_category_exists():
    built = build_lexicon()
    terms = [term for field in built["fields"] for term in field["terms"]]
    for row in [*built["fields"], *terms, *built["categories"], *built["followups"]]:
        assert row["zh"]
        assert row["en"]
    offered = {row["key"] for row in built["followups"]}
    assert {row["followup"] for row in built["categories"]} <= offered
    assert [row["key"] for row in built["categories"]] == list(lexicon.CATEGORIES)
