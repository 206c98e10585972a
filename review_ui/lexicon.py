"""Writes the lexicon of `node.domain` as the JSON that the review page is built from.

Run `python -m review_ui.lexicon` after a change of the lexicon; a test compares
the file with the table.
"""

import json
from pathlib import Path
from typing import Any

from node.domain import lexicon
from node.domain.lexicon import Concept

PATH = Path(__file__).parent / "src" / "lexicon.json"


def build_lexicon() -> dict[str, Any]:
    """Return every field, category and follow-up with codes and both languages."""
    return {
        "system": lexicon.FHIR_SYSTEM[lexicon.PRIVATE_SCHEME],
        "fields": [
            {
                "key": field.key.value,
                "multiple": field.multiple,
                **_concept(field.concept),
                "terms": [
                    {"key": term.key, **_concept(term.concept)} for term in field.terms
                ],
            }
            for field in lexicon.FIELDS.values()
        ],
        "calcificationsNone": _concept(lexicon.CALCIFICATIONS_NONE),
        "categories": [
            {
                "key": category.key,
                "rank": category.rank,
                "gated": category.gated,
                "followup": lexicon.FOLLOWUP_FOR_CATEGORY[category.key],
                **_concept(category.concept),
            }
            for category in lexicon.CATEGORIES.values()
        ],
        "assessmentCategory": _concept(lexicon.ASSESSMENT_CATEGORY),
        "recommendedFollowup": _concept(lexicon.RECOMMENDED_FOLLOWUP),
        "followups": [
            {"key": key, **_concept(concept)}
            for key, concept in lexicon.FOLLOWUP.items()
        ],
        "laterality": {
            key: _concept(concept) for key, concept in lexicon.BREAST_SIDE.items()
        },
        "clock": {
            str(hour): _concept(concept) for hour, concept in lexicon.CLOCK.items()
        },
    }


def _concept(concept: Concept) -> dict[str, str | None]:
    # The scheme BI has no FHIR system of its own; our private code stands for it.
    return {
        "system": lexicon.FHIR_SYSTEM.get(concept.scheme),
        "code": concept.value,
        "meaning": concept.meaning,
        "zh": concept.zh,
        "en": concept.en,
    }


def render() -> str:
    """Return the text of the file."""
    return json.dumps(build_lexicon(), ensure_ascii=False, indent=1) + "\n"


if __name__ == "__main__":
    PATH.write_text(render(), encoding="utf-8")
