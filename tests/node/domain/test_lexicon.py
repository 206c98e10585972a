"""The one table of terms: complete, unique and in both languages."""

import pytest

from node.domain import lexicon
from node.domain.errors import NodeError
from node.domain.lexicon import CATEGORIES, FIELDS, FieldKey


def test_the_fields_and_terms_are_those_of_the_agreed_lexicon() -> None:
    sizes = {key.value: len(field.terms) for key, field in FIELDS.items()}
    assert sizes == {
        "shape": 3,
        "orientation": 2,
        "margin": 5,
        "lesion_boundary": 2,
        "calcifications": 4,
        "echo_pattern": 5,
        "posterior_features": 4,
    }
    assert list(CATEGORIES) == ["0", "1", "2", "3", "4A", "4B", "4C", "5", "6"]


def test_every_term_has_a_short_code_and_both_languages() -> None:
    concepts = [f.concept for f in FIELDS.values()]
    concepts += [term.concept for f in FIELDS.values() for term in f.terms]
    concepts += [c.concept for c in CATEGORIES.values()]
    for concept in concepts:
        assert concept.zh
        assert concept.en
        assert len(concept.value) <= 16  # SH of Code Value
        assert len(concept.meaning) <= 64  # LO of Code Meaning
        assert (concept.scheme == "BI") == (concept.version is not None)


def test_no_two_terms_of_a_field_share_a_code() -> None:
    for field in FIELDS.values():
        codes = [(t.concept.scheme, t.concept.value) for t in field.terms]
        assert len(codes) == len(set(codes))


@pytest.mark.parametrize(
    ("keys", "worst"),
    [
        ([], None),
        (["2"], "2"),
        (["2", "4A", "3"], "4A"),
        (["3", "0"], "0"),
        (["0", "4A"], "4A"),
    ],
)
def test_the_most_suspicious_category_decides(
    keys: list[str], worst: str | None
) -> None:
    assert lexicon.worst_category(keys) == worst


def test_only_calcifications_can_be_assessed_and_absent() -> None:
    lexicon.check_values(FieldKey.CALCIFICATIONS, ())
    with pytest.raises(NodeError, match="leave it out"):
        lexicon.check_values(FieldKey.SHAPE, ())


def test_a_field_takes_its_own_terms_and_no_more_than_it_may() -> None:
    lexicon.check_values(FieldKey.MARGIN, ("angular", "spiculated"))
    with pytest.raises(NodeError, match="takes one value"):
        lexicon.check_values(FieldKey.SHAPE, ("oval", "round"))
    with pytest.raises(NodeError, match="not a value"):
        lexicon.check_values(FieldKey.SHAPE, ("square",))
