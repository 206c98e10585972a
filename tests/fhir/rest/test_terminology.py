"""$expand, $lookup and $validate-code of the lexicon (FHIR R4 4.8, 4.9)."""

from typing import Any

from fhir.conformance.terminology import VALUE_SETS
from fhir.content import concepts
from fhir.encoding.wire import Json
from node.domain import lexicon
from tests.fhir.rig import Rig

SETS = f"{concepts.BASE}/ValueSet"
SCT = lexicon.FHIR_SYSTEM["SCT"]


def value(parameters: Json, name: str) -> Any:
    found = [p for p in parameters["parameter"] if p["name"] == name]
    return next(v for k, v in found[0].items() if k.startswith("value"))


async def test_every_value_set_is_expanded_whole(rig: Rig) -> None:
    for id_, value_set in VALUE_SETS.items():
        by_id = await rig.read(f"/ValueSet/{id_}/$expand")
        by_url = await rig.read(f"/ValueSet/$expand?url={value_set.url}")
        assert by_id == by_url
        held = by_id["expansion"]["contains"]
        assert len(held) == by_id["expansion"]["total"] == len(value_set.codes)


async def test_an_expansion_is_filtered_paged_and_speaks_both_languages(
    rig: Rig,
) -> None:
    sides = "/ValueSet/breast-side/$expand"
    for text in ("left", "左"):
        body = await rig.read(f"{sides}?filter={text}")
        assert [c["code"] for c in body["expansion"]["contains"]] == ["80248007"]
    chinese = await rig.read(f"{sides}?displayLanguage=zh-CN&filter=Left")
    assert chinese["expansion"]["contains"][0]["display"] == "左乳"
    pages = [await rig.read(f"{sides}?count=3&offset={offset}") for offset in (0, 3, 6)]
    lengths = [len(page["expansion"].get("contains", [])) for page in pages]
    assert lengths == [3, 1, 0]
    asked = {
        "resourceType": "Parameters",
        "parameter": [
            {"name": "url", "valueUri": f"{SETS}/clock-position"},
            {"name": "count", "valueInteger": 2},
        ],
    }
    answer = await rig.ask("POST", "/ValueSet/$expand", asked)
    assert len(answer.body["expansion"]["contains"]) == 2


async def test_a_code_is_looked_up_in_both_languages(rig: Rig) -> None:
    asked = f"/CodeSystem/$lookup?system={concepts.PRIVATE}&code=4A"
    assert value(await rig.read(asked), "display") == "4A Low suspicion"
    chinese = await rig.read(f"{asked}&displayLanguage=zh")
    assert value(chinese, "display") == lexicon.CATEGORIES["4A"].concept.zh
    for unknown in (f"system={concepts.PRIVATE}&code=9", f"system={SCT}&code=4A"):
        assert (await rig.get(f"/CodeSystem/$lookup?{unknown}")).status == 404
    assert (await rig.get("/CodeSystem/$lookup?code=4A")).status == 400


async def test_a_code_is_in_a_value_set_or_not(rig: Rig) -> None:
    shape = "/ValueSet/lesion-shape/$validate-code"
    for query, holds in (
        (f"system={SCT}&code=84360004", True),
        (f"system={concepts.PRIVATE}&code=oval&display=椭圆形", True),
        (f"system={concepts.PRIVATE}&code=oval&display=square", False),
        (f"system={SCT}&code=oval", False),
        ("code=square", False),
    ):
        body = await rig.read(f"{shape}?{query}")
        assert value(body, "result") is holds, query
    concept = concepts.codeable(lexicon.SHAPE.term("round").concept, "round")
    asked = {
        "resourceType": "Parameters",
        "parameter": [
            {"name": "url", "valueUri": f"{SETS}/lesion-shape"},
            {"name": "codeableConcept", "valueCodeableConcept": concept},
        ],
    }
    answer = await rig.ask("POST", "/ValueSet/$validate-code", asked)
    assert value(answer.body, "result") is True


async def test_what_is_not_ours_is_not_answered(rig: Rig) -> None:
    for path, status in (
        ("/ValueSet/$expand", 400),
        ("/ValueSet/nothing/$expand", 404),
        ("/ValueSet/$expand?url=http://hl7.org/fhir/ValueSet/languages", 404),
        ("/ValueSet/breast-side/$expand?count=-1", 400),
        ("/ValueSet/breast-side/$validate-code", 400),
        ("/CodeSystem/$lookup", 400),
    ):
        answer = await rig.get(path)
        assert answer.status == status, path
        assert answer.body["resourceType"] == "OperationOutcome"
    assert (await rig.get("/ValueSet/$expand", role=None)).status == 401
