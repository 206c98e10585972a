"""The judges judge: what is right passes, what is wrong does not."""

from tests.conformance.judges import fhirkit


def test_fhirkit_tells_a_wrong_resource_from_a_right_one() -> None:
    assert fhirkit({"resourceType": "Patient", "gender": "female"}) == []
    assert fhirkit('{"resourceType": "Patient", "gender": "x y "}') != []
