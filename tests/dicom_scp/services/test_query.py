"""C-FIND of both roots at every level (PS3.4 C.4.1), by pynetdicom and by DCMTK."""

import asyncio
import shutil
import subprocess
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.filereader import dcmread
from pynetdicom import build_context

from dicom_scp.receiving.peers import Peer, Peers, ServiceName
from dicom_scp.receiving.scp import StorageScp
from dicom_scp.services import query
from dicom_scp.services.query import QuerySettings
from node.charset import decode_text
from node.store import audit
from node.store.store import Store
from tests.dicom_scp.conftest import StartScp
from tests.dicom_scp.services import archive
from tests.dicom_scp.services.archive import (
    JANUARY,
    LI,
    MARCH,
    OTHER,
    UNDATED,
    ZHANG,
    associated,
    identifier,
)

PATIENT_ROOT, STUDY_ROOT = "1.2.840.10008.5.1.4.1.2.1.1", "1.2.840.10008.5.1.4.1.2.2.1"


@pytest.fixture
async def filled(store: Store) -> dict[str, bytes]:
    return await archive.fill(store)


@pytest.fixture
async def scp(start_scp: StartScp, filled: dict[str, bytes]) -> StorageScp:
    return await serve(start_scp)


async def serve(start_scp: StartScp, **settings: object) -> StorageScp:
    return await start_scp(
        services=[query.service(QuerySettings(**settings))],  # type: ignore[arg-type]
        peers=archive.peers(ServiceName.QUERY),
    )


async def find(
    scp: StorageScp, asked: Dataset, model: str = STUDY_ROOT
) -> tuple[list[Dataset], list[Dataset]]:
    """Return the answers and all statuses."""

    def ask() -> tuple[list[Dataset], list[Dataset]]:
        association = associated(scp.ports[0], build_context(model))
        told = list(association.send_c_find(asked, model))
        association.release()
        return [one for _, one in told if one is not None], [s for s, _ in told]

    return await asyncio.to_thread(ask)


def uids(answers: list[Dataset]) -> list[str]:
    return [str(one.StudyInstanceUID) for one in answers]


# -- levels ----------------------------------------------------------------------------


async def test_patients_are_found_with_their_numbers_of_objects(
    scp: StorageScp,
) -> None:
    asked = identifier(
        "PATIENT",
        PatientName="zhang*",
        PatientID="",
        PatientSex="",
        NumberOfPatientRelatedStudies="",
        NumberOfPatientRelatedSeries="",
        NumberOfPatientRelatedInstances="",
    )
    (answer,), statuses = await find(scp, asked, PATIENT_ROOT)
    assert (answer.PatientID, answer.PatientSex) == (ZHANG, "F")
    assert answer.NumberOfPatientRelatedStudies == 3
    assert answer.NumberOfPatientRelatedSeries == 4
    assert answer.NumberOfPatientRelatedInstances == 8
    assert [s.Status for s in statuses] == [0xFF00, 0x0000]


async def test_studies_come_newest_first_with_what_was_asked_and_nothing_else(
    scp: StorageScp,
) -> None:
    asked = identifier(
        "STUDY",
        StudyInstanceUID="",
        StudyDate="",
        StudyTime="",
        AccessionNumber="",
        ModalitiesInStudy="",
        NumberOfStudyRelatedSeries="",
        NumberOfStudyRelatedInstances="",
        InstanceAvailability="",
    )
    answers, _ = await find(scp, asked)
    assert uids(answers) == [OTHER, MARCH, JANUARY, UNDATED]
    january = answers[2]
    assert (january.StudyDate, january.StudyTime) == ("20260102", "101500")
    assert january.AccessionNumber == "ACC1"
    assert january.ModalitiesInStudy == "US"
    assert january.NumberOfStudyRelatedSeries == 2
    assert january.NumberOfStudyRelatedInstances == 4
    assert january.InstanceAvailability == "ONLINE"
    assert january.RetrieveAETitle == "SONONODE"
    assert {e.keyword for e in january} == {e.keyword for e in asked} | {
        "RetrieveAETitle"
    }
    assert answers[3].StudyDate == ""


async def test_series_and_images_are_found_below_their_study(scp: StorageScp) -> None:
    asked = identifier(
        "SERIES",
        StudyInstanceUID=JANUARY,
        SeriesInstanceUID="",
        SeriesNumber="2",
        SeriesDescription="",
        NumberOfSeriesRelatedInstances="",
    )
    (series,), _ = await find(scp, asked)
    assert series.SeriesInstanceUID == f"{JANUARY}.2"
    assert series.SeriesDescription == "series 2"
    assert series.NumberOfSeriesRelatedInstances == 2
    asked = identifier(
        "IMAGE",
        StudyInstanceUID=JANUARY,
        SeriesInstanceUID=f"{JANUARY}.2",
        SOPInstanceUID="",
        InstanceNumber="",
        Rows=None,
        AvailableTransferSyntaxUID="",
    )
    images, _ = await find(scp, asked)
    assert [i.SOPInstanceUID for i in images] == [f"{JANUARY}.2.1", f"{JANUARY}.2.2"]
    assert (images[1].InstanceNumber, images[1].Rows) == (2, 8)
    assert images[0].AvailableTransferSyntaxUID == "1.2.840.10008.1.2.1"


async def test_patient_root_names_the_patient_at_every_level(scp: StorageScp) -> None:
    asked = identifier("STUDY", PatientID=ZHANG, StudyInstanceUID="")
    answers, _ = await find(scp, asked, PATIENT_ROOT)
    assert set(uids(answers)) == {JANUARY, MARCH, UNDATED}
    asked = identifier(
        "SERIES", PatientID=LI, StudyInstanceUID=JANUARY, SeriesInstanceUID=""
    )
    answers, _ = await find(scp, asked, PATIENT_ROOT)
    assert answers == []


async def test_query_without_the_entity_above_is_refused(scp: StorageScp) -> None:
    two = ["2.25.1", "2.25.2"]
    for model, keys, fault in (
        (STUDY_ROOT, {"SeriesInstanceUID": ""}, "StudyInstanceUID"),
        (STUDY_ROOT, {"StudyInstanceUID": two}, "StudyInstanceUID"),
        (PATIENT_ROOT, {"StudyInstanceUID": JANUARY}, "PatientID"),
        (PATIENT_ROOT, {"StudyInstanceUID": JANUARY, "PatientID": "P*"}, "PatientID"),
    ):
        answers, (status,) = await find(scp, identifier("SERIES", **keys), model)  # type: ignore[arg-type]
        assert answers == []
        assert status.Status == 0xA900
        assert "has to name one" in status.ErrorComment
        assert status.OffendingElement == tag_for_keyword(fault)


async def test_relational_query_is_answered_where_the_site_allows_it(
    start_scp: StartScp, filled: dict[str, bytes]
) -> None:
    scp = await serve(start_scp, relational=True)
    asked = identifier("IMAGE", SOPInstanceUID=f"{MARCH}.1.2", StudyInstanceUID="")
    (answer,), _ = await find(scp, asked)
    assert answer.StudyInstanceUID == MARCH


async def test_level_that_the_model_lacks_is_refused(scp: StorageScp) -> None:
    _, (status,) = await find(scp, identifier("PATIENT", PatientID=""))
    assert (status.Status, status.OffendingElement) == (0xA900, 0x00080052)


# -- matching --------------------------------------------------------------------------


FOUND_BY: list[tuple[dict[str, object], set[str]]] = [
    ({"PatientName": "ZHANG*"}, {JANUARY, MARCH, UNDATED}),
    ({"PatientName": "张*"}, {JANUARY, MARCH, UNDATED}),
    ({"PatientName": "*Mei*"}, {OTHER}),
    ({"PatientName": "Zhang"}, set()),
    ({"PatientID": ZHANG}, {JANUARY, MARCH, UNDATED}),
    ({"PatientID": "p-0001"}, set()),
    ({"PatientID": "P-000?"}, {JANUARY, MARCH, UNDATED, OTHER}),
    ({"PatientBirthDate": "19800214"}, {OTHER}),
    ({"AccessionNumber": "ACC2"}, {MARCH}),
    ({"AccessionNumber": "ACC*", "StudyDate": "-20260131"}, {JANUARY}),
    ({"StudyDate": "20260101-20260315"}, {JANUARY, MARCH}),
    ({"StudyDate": "20260316"}, {OTHER}),
    ({"StudyTime": "1000-1030"}, {JANUARY, MARCH}),
    ({"ModalitiesInStudy": "SR"}, {UNDATED}),
    ({"ModalitiesInStudy": "CT"}, set()),
    ({"StudyID": "2"}, {MARCH}),
    ({"StudyInstanceUID": [JANUARY, MARCH, "2.25.99"]}, {JANUARY, MARCH}),
]


async def test_studies_are_found_by_every_kind_of_matching(scp: StorageScp) -> None:
    def ask() -> list[set[str]]:
        association = associated(scp.ports[0], build_context(STUDY_ROOT))
        found = []
        for keys, _ in FOUND_BY:
            asked = identifier("STUDY", **{"StudyInstanceUID": "", **keys})
            asked.SpecificCharacterSet = "ISO_IR 192"
            told = association.send_c_find(asked, STUDY_ROOT)
            found.append({str(a.StudyInstanceUID) for _, a in told if a is not None})
        association.release()
        return found

    assert await asyncio.to_thread(ask) == [found for _, found in FOUND_BY]


async def test_key_that_is_not_supported_is_told_by_the_status(scp: StorageScp) -> None:
    asked = identifier("STUDY", StudyInstanceUID=MARCH, ContentDate="")
    (answer,), statuses = await find(scp, asked)
    assert statuses[0].Status == 0xFF01
    assert "ContentDate" not in answer


async def test_names_are_answered_in_the_character_set_of_the_peer(
    scp: StorageScp,
) -> None:
    for asked_in, answered_in in (
        (["", "ISO 2022 IR 58"], ["", "ISO 2022 IR 58"]),
        (["GB18030"], ["GB18030"]),
        (["ISO_IR 192"], ["ISO_IR 192"]),
        (["ISO_IR 100"], ["ISO_IR 192"]),
        ([], ["ISO_IR 192"]),
    ):
        asked = identifier("STUDY", StudyInstanceUID=MARCH, PatientName="")
        if asked_in:
            asked.SpecificCharacterSet = asked_in
        (answer,), _ = await find(scp, asked)
        told = answer.SpecificCharacterSet
        assert ([told] if isinstance(told, str) else list(told)) == answered_in
        raw = answer.get_item("PatientName").value
        assert decode_text(raw, answered_in) == "Zhang^San=张^三"


# -- limits ----------------------------------------------------------------------------


async def test_list_is_never_silently_short(
    start_scp: StartScp, filled: dict[str, bytes]
) -> None:
    scp = await serve(start_scp, maximum_matches=2)
    answers, statuses = await find(scp, identifier("STUDY", StudyInstanceUID=""))
    assert len(answers) == 2
    assert statuses[-1].Status == 0xA700
    assert "more than 2 matches" in statuses[-1].ErrorComment


async def test_search_that_would_open_everything_ends_with_advice(
    start_scp: StartScp, filled: dict[str, bytes]
) -> None:
    scp = await serve(start_scp, maximum_opened=2)
    asked = identifier("STUDY", StudyInstanceUID="", PatientName="*nobody*")
    answers, (status,) = await find(scp, asked)
    assert answers == []
    assert status.Status == 0xA700
    assert "how the name starts" in status.ErrorComment
    asked.PatientName = "Nob*nobody"
    assert (await find(scp, asked))[1][0].Status == 0x0000


async def test_cancelled_query_ends_at_once(
    start_scp: StartScp, filled: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    cancelled = threading.Event()
    searched = query._Search.answers

    def slowly(search: query._Search) -> object:
        for number, answer in enumerate(searched(search)):
            if number:
                assert cancelled.wait(60)
            yield answer

    monkeypatch.setattr(query._Search, "answers", slowly)
    monkeypatch.setattr(query, "LISTEN_EVERY", 1)
    scp = await serve(start_scp)

    def ask() -> list[int]:
        association = associated(scp.ports[0], build_context(STUDY_ROOT))
        asked = identifier("STUDY", StudyInstanceUID="")
        statuses = []
        for status, _ in association.send_c_find(asked, STUDY_ROOT, msg_id=7):
            statuses.append(status.Status)
            if len(statuses) == 1:
                association.send_c_cancel(7, query_model=STUDY_ROOT)
                acceptor = scp.associations.acceptors()[0]
                end = time.monotonic() + 60
                while 7 not in acceptor.dimse.cancel_req and time.monotonic() < end:
                    time.sleep(0.001)
                cancelled.set()
        association.release()
        return statuses

    statuses = await asyncio.to_thread(ask)
    assert statuses[-1] == 0xFE00
    assert len(statuses) <= 3


# -- what is rejected, who may ask, what is told ---------------------------------------


async def test_rejected_instances_are_not_found(scp: StorageScp, store: Store) -> None:
    await archive.reject(store, MARCH, [f"{MARCH}.1.1"])
    asked = identifier(
        "IMAGE",
        StudyInstanceUID=MARCH,
        SeriesInstanceUID=f"{MARCH}.1",
        SOPInstanceUID="",
    )
    images, _ = await find(scp, asked)
    assert [i.SOPInstanceUID for i in images] == [f"{MARCH}.1.2"]
    asked = identifier(
        "STUDY", StudyInstanceUID=MARCH, NumberOfStudyRelatedInstances=""
    )
    (study,), _ = await find(scp, asked)
    assert study.NumberOfStudyRelatedInstances == 2  # the other image and the note


async def test_who_is_not_entered_for_it_may_not_search(
    start_scp: StartScp, store: Store
) -> None:
    service = query.service(QuerySettings())
    for peers in (Peers(), Peers([Peer(archive.VIEWER)])):
        scp = await start_scp(services=[service], peers=peers)

        def refused(port: int = scp.ports[0]) -> bool:
            association = associated(
                port, build_context("1.2.840.10008.1.1"), build_context(STUDY_ROOT)
            )
            taken = {str(c.abstract_syntax) for c in association.accepted_contexts}
            association.release()
            return STUDY_ROOT not in taken

        assert await asyncio.to_thread(refused)


async def test_search_is_audited_without_what_was_searched_for(
    scp: StorageScp, store: Store
) -> None:
    await find(scp, identifier("STUDY", StudyInstanceUID="", PatientName="Zhang*"))
    await asyncio.to_thread(scp.stop, grace_s=1)
    async with store.db.connection() as tx:
        (entry,) = await audit.entries(tx, entity="catalogue")
    assert (entry.actor, entry.action) == (archive.VIEWER, "query")
    assert entry.detail["matches"] == "3"
    assert entry.detail["asked"] == "00100010"
    assert "zhang" not in str(entry).lower()
    assert entry.at == datetime(2026, 11, 21, 8, 0, tzinfo=UTC)


# -- one woman under two numbers -------------------------------------------------------


async def test_a_woman_of_two_numbers_is_found_whole_by_either_and_once(
    scp: StorageScp, store: Store
) -> None:
    await archive.merge(store, LI, ZHANG)
    for number in (ZHANG, LI):
        asked = identifier(
            "STUDY",
            PatientID=number,
            PatientName="",
            StudyInstanceUID="",
            OtherPatientIDsSequence=[],
        )
        answers, statuses = await find(scp, asked, PATIENT_ROOT)
        assert statuses[0].Status == 0xFF00  # every key is supported
        assert uids(answers) == [OTHER, MARCH, JANUARY, UNDATED]
        # What is answered is what the images say: a viewer compares both.
        assert [one.PatientID for one in answers] == [LI, ZHANG, ZHANG, ZHANG]
        others = [one.OtherPatientIDsSequence for one in answers]
        assert [
            [(i.PatientID, i.TypeOfPatientID) for i in told] for told in others
        ] == [
            [(ZHANG, "TEXT")],
            *[[(LI, "TEXT")]] * 3,
        ]
        assert others[0][0].IssuerOfPatientID == "HIS"

    asked = identifier("PATIENT", PatientID=LI, NumberOfPatientRelatedStudies="")
    (answer,), _ = await find(scp, asked, PATIENT_ROOT)
    assert (answer.PatientID, answer.NumberOfPatientRelatedStudies) == (LI, 4)
    for everybody in ("", "P-*", [ZHANG, LI]):
        asked = identifier("PATIENT", PatientID=everybody, OtherPatientIDsSequence=[])
        (answer,), _ = await find(scp, asked, PATIENT_ROOT)
        assert answer.PatientID == ZHANG  # by the number that stands
        assert answer.OtherPatientIDsSequence[0].PatientID == LI
    for name, number in (("li^*", LI), ("zhang*", ZHANG)):
        asked = identifier("PATIENT", PatientID="", PatientName=name)
        (answer,), _ = await find(scp, asked, PATIENT_ROOT)
        assert answer.PatientID == number  # the row that has the name

    # A name, a birth date beside the number: of one row, not some of each.
    asked = identifier("STUDY", PatientID=LI, PatientName="zhang*", StudyInstanceUID="")
    assert (await find(scp, asked))[0] == []
    asked = identifier("STUDY", PatientName="li^*", StudyInstanceUID="")
    assert uids((await find(scp, asked))[0]) == [OTHER]


# -- DCMTK -----------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("findscu") is None, reason="DCMTK is not installed")
async def test_findscu_reads_the_answers(
    scp: StorageScp, store: Store, tmp_path: Path
) -> None:
    await archive.merge(store, LI, ZHANG)
    done = await asyncio.to_thread(
        subprocess.run,
        [
            *("findscu", "-S", "-X", "-aet", archive.VIEWER, "-aec", "SONONODE"),
            *("-k", "QueryRetrieveLevel=STUDY", "-k", "StudyInstanceUID"),
            *("-k", f"PatientID={LI}", "-k", "StudyDate=20260101-20260331"),
            *("-k", "PatientName", "-k", "OtherPatientIDsSequence"),
            *("127.0.0.1", str(scp.ports[0])),
        ],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "TCP_NODELAY": "1"},
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    answers = [dcmread(path, force=True) for path in sorted(tmp_path.glob("rsp*"))]
    assert uids(answers) == [OTHER, MARCH, JANUARY]
    assert str(answers[1].PatientName) == "Zhang^San=张^三"
    assert answers[1].OtherPatientIDsSequence[0].PatientID == LI
