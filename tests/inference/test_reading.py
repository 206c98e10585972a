"""How lesions are named when a study is read, and read again (TID 1410)."""

from dataclasses import replace
from decimal import Decimal
from uuid import UUID

from inference.place import NOWHERE, Place
from inference.reading import tracking_uids
from node.domain.finding import Findings
from node.domain.report import Report
from node.domain.uids import result_uid
from tests.factories import make_draft, make_lesion

REPORT_ID = UUID(int=7)
FIRST_EVER = result_uid(REPORT_ID, 0, "lesion/1")


def report_with(*places: tuple[str, Place]) -> Report:
    lesions = tuple(
        make_lesion(
            tracking_uid=uid,
            laterality=place.laterality,
            clock=place.clock,
            distance_from_nipple_mm=place.distance_from_nipple_mm,
        )
        for uid, place in places
    )
    report = make_draft(report_id=REPORT_ID)
    version = replace(report.current, findings=Findings(lesions))
    return replace(report, versions=(version,))


def test_lesion_is_named_after_its_place() -> None:
    name = tracking_uids(REPORT_ID, None)
    places = [
        NOWHERE,
        Place("L"),
        Place("R"),
        Place("L", 3),
        Place("L", 3, Decimal(20)),
    ]
    uids = [name(place) for place in places]
    assert len(set(uids)) == len(places)
    assert [tracking_uids(REPORT_ID, None)(place) for place in places] == uids


def test_lesion_of_no_place_is_named_as_the_only_one_always_was() -> None:
    assert tracking_uids(REPORT_ID, None)(NOWHERE) == FIRST_EVER


def test_lesion_keeps_the_uid_that_an_earlier_version_gave_its_place() -> None:
    earlier = report_with((FIRST_EVER, Place("L")))
    assert tracking_uids(REPORT_ID, earlier)(Place("L")) == FIRST_EVER


def test_two_lesions_never_share_a_uid_that_an_old_report_gave_one_of_them() -> None:
    name = tracking_uids(REPORT_ID, report_with((FIRST_EVER, Place("L"))))
    assert name(NOWHERE) != FIRST_EVER
    again = report_with((FIRST_EVER, Place("L")), (name(NOWHERE), NOWHERE))
    assert tracking_uids(REPORT_ID, again)(NOWHERE) == name(NOWHERE)
