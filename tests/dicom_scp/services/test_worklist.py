"""Modality Worklist as machines see it (PS3.4 Annex K), beside DCMTK's `wlmscpfs`."""

import asyncio
import socket
import subprocess
import time as clock_time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import date, time
from io import BytesIO
from pathlib import Path
from typing import Any
from uuid import uuid4

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pydicom.valuerep import PersonName
from pynetdicom import AE, association
from pynetdicom.dsutils import encode

from dicom_scp.receiving.peers import Peer, Peers, ServiceName
from dicom_scp.services.answers import encode_answer, read_identifier, spoken
from dicom_scp.services.matching import Key, matches
from dicom_scp.services.worklist import (
    STEP,
    WORKLIST_FIND,
    Stations,
    WorklistSettings,
    answer_of,
    worklist_service,
)
from node.charset import unicode_header
from node.domain.order import Code, Order, OrderSource, OrderStatus, Step
from node.domain.study import PatientIdentity
from node.store import merges, orders
from node.store.orders import ListedOrder
from node.store.store import Store
from node.workflow.orders import Placement, patient_of_order, place_order
from tests.conformance.judges import dcmtk
from tests.dicom_scp.conftest import StartScp
from tests.ports import free_port

WANG = PatientIdentity("P1", "Wang^Fang=王^芳", date(1980, 2, 3), "F")
LI = PatientIdentity("P2", "Li^Xiaohong=李^小红", date(1975, 5, 6), "F")
MUELLER = PatientIdentity("P3", "Müller^Zoë", date(1968, 7, 8), "F")
HAN_ONLY = PatientIdentity("P4", "=欧阳^娜", date(1990, 9, 9), "F")

ULTRASOUND = Code("47079000", "SCT", "Ultrasonography of breast")


def make_step(number: int, day: int, hour: int | None, **changes: Any) -> Step:
    step = Step(
        scheduled_on=date(2026, 11, day),
        scheduled_time=None if hour is None else time(hour),
        accession_number=f"ACC{number}",
        requested_procedure_id=f"RP{number}",
        requested_procedure_description="乳腺超声",
        requested_procedure_code=ULTRASOUND,
        step_id=f"S{number}",
        step_description="Breast US",
        station_titles=("US1",),
        performing_physician="Zhao^Min",
        referring_physician="Sun^Li",
    )
    return replace(step, **changes)


ITEMS = [
    (WANG, make_step(1, 21, 9)),
    (LI, make_step(2, 21, 14, station_titles=("US2",))),
    (WANG, make_step(3, 22, 9, performing_physician="Qian^Jun")),
    (LI, make_step(4, 23, 8, modality="MG", station_titles=("MG1",))),
]


async def place(
    store: Store, items: Sequence[tuple[PatientIdentity, Step]] = ITEMS
) -> list[ListedOrder]:
    placed = []
    async with store.db.transaction() as tx:
        for patient, step in items:
            patient_id = await patient_of_order(store, tx, patient)
            key = f"{step.accession_number}/{step.step_id}"
            placement = Placement(key, patient_id, OrderSource.REST, step)
            order, _ = await place_order(store, tx, placement, by=None)
            placed.append(ListedOrder(order, patient))
    return placed


def peers() -> Peers:
    names = frozenset({ServiceName.STORE, ServiceName.WORKLIST})
    return Peers([Peer(title, services=names) for title in ("US1", "US2", "ANY-SCU")])


Serve = Callable[..., Awaitable[int]]


@pytest.fixture
def serve(start_scp: StartScp) -> Serve:
    """Return a starter of a node with a worklist; it answers the port."""

    async def start(**changes: Any) -> int:
        service = worklist_service(WorklistSettings(**changes))
        scp = await start_scp(services=[service], peers=peers())
        return scp.ports[0]

    return start


def findscu(port: int, folder: Path, *keys: str, ae: str = "ANY-SCU") -> list[Dataset]:
    """Ask as DCMTK does; return the answers in Unicode."""
    folder.mkdir(parents=True, exist_ok=True)
    codec = "gb18030" if "SpecificCharacterSet=GB18030" in keys else "utf-8"
    told = [part.encode(codec) for key in keys for part in ("-k", key)]
    run = subprocess.run(
        [
            *(dcmtk("findscu"), "-W", "-aet", ae, "-aec", "SONONODE"),
            *("-X", "-od", str(folder), *told, "127.0.0.1", str(port)),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    assert "E:" not in run.stderr, run.stderr
    return [
        unicode_header(pydicom.dcmread(path, force=True))
        for path in sorted(folder.glob("rsp*.dcm"))
    ]


STEP_KEY = "ScheduledProcedureStepSequence[0]."
WHOLE = (
    "PatientName",
    "PatientID",
    "AccessionNumber",
    "RequestedProcedureID",
    "StudyInstanceUID",
    f"{STEP_KEY}ScheduledProcedureStepID",
)


def with_keys(*keys: str) -> list[str]:
    asked = {key.partition("=")[0] for key in keys}
    return [*keys, *(key for key in WHOLE if key not in asked)]


def steps(answers: Sequence[Dataset]) -> set[str]:
    return {
        answer.ScheduledProcedureStepSequence[0].ScheduledProcedureStepID
        for answer in answers
    }


# -- the same as wlmscpfs --------------------------------------------------------------

QUERIES = [
    [],
    [f"{STEP_KEY}ScheduledProcedureStepStartDate=20261121"],
    [f"{STEP_KEY}ScheduledProcedureStepStartDate=20261121-20261122"],
    [f"{STEP_KEY}ScheduledProcedureStepStartDate=20261122-"],
    [f"{STEP_KEY}ScheduledProcedureStepStartDate=-20261121"],
    [f"{STEP_KEY}ScheduledProcedureStepStartTime=0800-1000"],
    [
        f"{STEP_KEY}ScheduledProcedureStepStartDate=20261121-20261122",
        f"{STEP_KEY}ScheduledProcedureStepStartTime=1000-1200",
    ],
    [f"{STEP_KEY}ScheduledStationAETitle=US1"],
    [f"{STEP_KEY}ScheduledStationAETitle=US9"],
    [f"{STEP_KEY}Modality=MG"],
    [f"{STEP_KEY}ScheduledPerformingPhysicianName=Qian*"],
    ["PatientName=Wang*"],
    ["PatientName=W?ng^Fang*"],
    ["PatientName=*"],
    ["PatientName=Nobody*"],
    ["PatientName=*王*"],
    ["PatientID=P2"],
    ["AccessionNumber=ACC3"],
    ["RequestedProcedureID=RP4"],
]

NAME_QUERIES = [[], ["PatientName=Wang*"], ["PatientName=*王*"]]


def worklist_file(listed: ListedOrder, path: Path, character_set: str) -> None:
    """Write an order as the files from which `wlmscpfs` answers."""
    syntax = ExplicitVRLittleEndian
    answer = answer_of(listed, "US1")
    item = answer[STEP]["Value"][0]
    for model in (answer, item):  # it refuses optional sequences without items
        for tag in [t for t, e in model.items() if e["vr"] == "SQ" and not e["Value"]]:
            del model[tag]
    dataset = encode_answer(answer, (character_set,), syntax)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID("1.2.276.0.7230010.3.1.0.1")
    meta.MediaStorageSOPInstanceUID = UID("2.25.1")
    meta.TransferSyntaxUID = syntax
    file = BytesIO()
    pydicom.filewriter.write_file_meta_info(file, meta, enforce_standard=False)
    body = encode(dataset, False, True)
    assert body is not None
    path.write_bytes(b"\0" * 128 + b"DICM" + file.getvalue() + body)


@pytest.fixture(params=["ISO_IR 192", "GB18030"])
def character_set(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def reference(store: Store, tmp_path: Path, character_set: str) -> Any:
    """A `wlmscpfs` with the same orders as the store; yields its port."""
    folder = tmp_path / "wl" / "SONONODE"
    folder.mkdir(parents=True)
    (folder / "lockfile").touch()
    for number, listed in enumerate(await place(store)):
        worklist_file(listed, folder / f"{number}.wl", character_set)
    port = free_port()
    process = subprocess.Popen(
        [dcmtk("wlmscpfs"), "-s", "-csk", "-dfp", str(folder.parent), str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        await asyncio.to_thread(_until_open, port)
        yield port
    finally:
        process.kill()
        process.wait()


def _until_open(port: int) -> None:
    for _ in range(3000):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        clock_time.sleep(0.02)
    raise AssertionError("wlmscpfs does not listen")


async def test_the_same_items_as_wlmscpfs_finds(
    reference: int, serve: Serve, tmp_path: Path, character_set: str
) -> None:
    ours = await serve(stations=Stations.ALL)
    utf8 = character_set == "ISO_IR 192"
    for number, query in enumerate(QUERIES if utf8 else NAME_QUERIES):
        keys = [f"SpecificCharacterSet={character_set}", *with_keys(*query)]
        told, expected = [
            await asyncio.to_thread(findscu, port, tmp_path / f"{name}{number}", *keys)
            for name, port in (("ours", ours), ("theirs", reference))
        ]
        assert query or len(expected) == len(ITEMS)
        assert steps(told) == steps(expected), query
        theirs = {answer.AccessionNumber: answer for answer in expected}
        for mine in told:
            same = theirs[mine.AccessionNumber]
            assert str(mine.PatientName) == str(same.PatientName)
            assert set(mine.keys()) == set(same.keys()), query


# -- what is asked for -----------------------------------------------------------------


def make_query(**changes: Any) -> Dataset:
    """Return what a machine asks when somebody presses the worklist key."""
    query, step = Dataset(), Dataset()
    for keyword in (
        "ScheduledStationAETitle",
        "ScheduledProcedureStepStartDate",
        "ScheduledProcedureStepStartTime",
        "Modality",
        "ScheduledPerformingPhysicianName",
        "ScheduledProcedureStepDescription",
        "ScheduledProcedureStepID",
    ):
        setattr(step, keyword, changes.pop(keyword, ""))
    query.ScheduledProcedureStepSequence = [step]
    for keyword in ("PatientName", "PatientID", "AccessionNumber", "StudyInstanceUID"):
        setattr(query, keyword, "")
    for keyword, value in changes.items():
        setattr(query, keyword, value)
    return query


UNICODE = {"SpecificCharacterSet": "ISO_IR 192"}
Answer = tuple[list[Dataset], list[Dataset]]


async def ask(
    port: int, query: Dataset, ae: str = "US1", cancel: bool = False
) -> Answer:
    """Return (answers in Unicode, all statuses) of one query."""

    def run() -> Answer:
        entity = AE("US1")
        entity.add_requested_context(WORKLIST_FIND, ImplicitVRLittleEndian)
        found, statuses = [], []
        association = entity.associate("127.0.0.1", port, ae_title="SONONODE")
        assert association.is_established
        for status, answer in association.send_c_find(query, WORKLIST_FIND, msg_id=7):
            statuses.append(status)
            if cancel and answer is not None:
                association.send_c_cancel(7, query_model=WORKLIST_FIND)
            if answer is not None:
                found.append(unicode_header(answer))
        association.release()
        return found, statuses

    return await asyncio.to_thread(run)


async def test_a_machine_sees_its_own_steps_and_those_of_nobody(
    store: Store, serve: Serve
) -> None:
    free = make_step(9, 21, 16, station_titles=())
    await place(store, [*ITEMS, (MUELLER, free)])
    port = await serve()
    mine, _ = await ask(port, make_query())
    assert steps(mine) == {"S1", "S3", "S9"}
    (offered,) = (a for a in mine if a.PatientID == "P3")
    step = offered.ScheduledProcedureStepSequence[0]
    assert step.ScheduledStationAETitle == "US1"
    theirs, _ = await ask(port, make_query(ScheduledStationAETitle="US2"))
    assert steps(theirs) == {"S2"}
    pattern, _ = await ask(port, make_query(ScheduledStationAETitle="US*"))
    assert steps(pattern) == {"S1", "S2", "S3", "S9"}


async def test_an_order_of_a_merged_woman_is_offered_once_under_her_standing_number(
    store: Store, serve: Serve
) -> None:
    lost, other, *_ = await place(store)
    kept = other.order.patient_id
    async with store.db.transaction() as tx:
        await merges.link(tx, lost.order.patient_id, kept)
    port = await serve(stations=Stations.ALL)
    for asked in ("P1", "P2", "P*", ""):
        query = make_query(PatientID=asked, OtherPatientIDs="", **UNICODE)
        answers, _ = await ask(port, query)
        assert sorted(steps(answers)) == ["S1", "S2", "S3", "S4"]
        assert len(answers) == 4
        told = {(a.PatientID, str(a.PatientName), a.OtherPatientIDs) for a in answers}
        assert told == {("P2", LI.name, "P1")}
    by_name, _ = await ask(port, make_query(PatientName="Wang*", **UNICODE))
    assert {str(one.PatientName) for one in by_name} == {LI.name}
    async with store.db.transaction() as tx:
        await merges.link(tx, lost.order.patient_id, None)
    apart, _ = await ask(port, make_query(PatientID="P1"))
    assert (steps(apart), {a.PatientID for a in apart}) == ({"S1", "S3"}, {"P1"})


async def test_a_site_can_keep_each_machine_to_its_own_steps(
    store: Store, serve: Serve
) -> None:
    await place(store)
    port = await serve(stations=Stations.OWN)
    assert steps((await ask(port, make_query()))[0]) == {"S1", "S3"}
    other = make_query(ScheduledStationAETitle="US2")
    assert (await ask(port, other))[0] == []


async def test_what_has_begun_or_is_long_past_is_not_offered(
    store: Store, serve: Serve
) -> None:
    first, *_ = await place(store, [*ITEMS, (LI, make_step(9, 12, 9))])
    async with store.db.transaction() as tx:
        begun = OrderStatus.IN_PROGRESS
        await orders.set_status(tx, first.order.order_id, begun, at=store.clock())
    port = await serve()
    assert steps((await ask(port, make_query()))[0]) == {"S3"}
    dated = make_query(ScheduledProcedureStepStartDate="20261101-")
    assert steps((await ask(port, dated))[0]) == {"S3", "S9"}
    port = await serve(in_progress=True)
    assert steps((await ask(port, make_query()))[0]) == {"S1", "S3"}


async def test_a_step_without_an_hour_is_due_the_whole_day(
    store: Store, serve: Serve
) -> None:
    await place(store, [(WANG, make_step(1, 21, None))])
    port = await serve()
    query = make_query(
        ScheduledProcedureStepStartDate="20261120-20261121",
        ScheduledProcedureStepStartTime="1300-1400",
    )
    (answer,), _ = await ask(port, query)
    step = answer.ScheduledProcedureStepSequence[0]
    assert step.ScheduledProcedureStepStartTime == "000000"
    tomorrow = make_query(ScheduledProcedureStepStartDate="20261122")
    assert (await ask(port, tomorrow))[0] == []


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("wang*", {"S1"}),
        ("王*", {"S1"}),
        ("=王^芳", {"S1"}),
        ("王芳", {"S1"}),
        ("=李*", set()),
        ("MULLER*", {"S3"}),
        ("Müller^Zoe", {"S3"}),
        ("欧阳?", {"S4"}),
        ("*", {"S1", "S3", "S4"}),
    ],
)
async def test_names_are_found_in_every_group_whatever_their_case_and_accents(
    store: Store, serve: Serve, pattern: str, found: set[str]
) -> None:
    patients = ((WANG, 1), (MUELLER, 3), (HAN_ONLY, 4))
    await place(store, [(who, make_step(n, 21, 9)) for who, n in patients])
    query = make_query(PatientName=pattern, SpecificCharacterSet="ISO_IR 192")
    answers, _ = await ask(await serve(), query)
    assert steps(answers) == found


async def test_only_what_was_asked_for_is_told(store: Store, serve: Serve) -> None:
    await place(store)
    query = Dataset()
    query.PatientID = "P1"
    query.ScheduledProcedureStepSequence = []
    query.RequestedProcedureCodeSequence = [Dataset()]
    query.RequestedProcedureCodeSequence[0].CodeValue = ""
    (answer, _), statuses = await ask(await serve(), query)
    assert [element.keyword for element in answer] == [
        "SpecificCharacterSet",  # written by `unicode_header`
        "PatientID",
        "RequestedProcedureCodeSequence",
        "ScheduledProcedureStepSequence",
    ]
    assert len(answer.ScheduledProcedureStepSequence[0]) > 10
    assert [e.keyword for e in answer.RequestedProcedureCodeSequence[0]] == [
        "CodeValue"
    ]
    assert [status.Status for status in statuses] == [0xFF00, 0xFF00, 0x0000]


async def test_a_key_that_we_do_not_have_is_said_to_be_missing(
    store: Store, serve: Serve
) -> None:
    await place(store)
    query = make_query(PatientMotherBirthName="", PatientBirthDate="")
    answers, statuses = await ask(await serve(), query)
    assert {status.Status for status in statuses} == {0xFF01, 0x0000}
    assert all("PatientMotherBirthName" not in answer for answer in answers)
    assert answers[0].PatientBirthDate == "19800203"


async def test_a_query_that_finds_too_much_says_so(store: Store, serve: Serve) -> None:
    await place(store)
    port = await serve(maximum_answers=1)
    answers, statuses = await ask(port, make_query())
    assert len(answers) == 1
    assert statuses[-1].Status == 0xA700
    narrow = make_query(ScheduledProcedureStepStartDate="20261122")
    assert (await ask(port, narrow))[1][-1].Status == 0x0000


async def test_a_query_can_be_cancelled(store: Store, serve: Serve) -> None:
    await place(store, [(WANG, make_step(n, 21, 9)) for n in range(1, 300)])
    answers, statuses = await ask(await serve(), make_query(), cancel=True)
    assert statuses[-1].Status == 0xFE00
    assert len(answers) < 299


REFUSED = [
    ({"QueryRetrieveLevel": "STUDY"}, 0x00080052),
    ({"ScheduledProcedureStepStartDate": "yesterday"}, 0x00400002),
    ({"ScheduledProcedureStepStartDate": "20261131"}, 0x00400002),
    ({"ScheduledProcedureStepStartTime": "2500"}, 0x00400003),
    ({"PatientName": "A" * 2000}, 0x00100010),
]


@pytest.mark.filterwarnings("ignore:.*(Invalid value|exceeds)")
async def test_an_identifier_of_something_else_is_refused_with_its_element(
    store: Store, serve: Serve
) -> None:
    port = await serve()
    for changes, element in REFUSED:
        _, (status,) = await ask(port, make_query(**changes))
        assert (status.Status, status.OffendingElement) == (0xA900, element), changes
    query = make_query()
    query.ScheduledProcedureStepSequence.append(Dataset())
    assert (await ask(port, query))[1][0].Status == 0xA900


async def test_an_identifier_that_is_cut_off_cannot_be_processed(
    store: Store, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = await serve()
    whole = association.encode
    monkeypatch.setattr(association, "encode", lambda *a: whole(*a)[:-3])
    _, (status,) = await ask(port, make_query(PatientID="PATIENT"))
    assert status.Status == 0xC000
    assert "PATIENT" not in status.ErrorComment


async def test_every_query_is_audited_without_saying_whom_it_found(
    store: Store, serve: Serve
) -> None:
    await place(store)
    await ask(await serve(), make_query(PatientName="Wang*"))
    async with store.db.transaction() as tx:
        row = await tx.fetchrow("select * from audit_entries where action = 'query'")
    assert (row["actor"], row["entity"]) == ("US1", "worklist")
    assert '"answers":"2"' in row["detail"].replace(" ", "")
    assert "Wang" not in repr(dict(row))


async def test_who_may_not_use_the_worklist_is_not_offered_it(
    store: Store, start_scp: StartScp
) -> None:
    service = worklist_service(WorklistSettings())
    scp = await start_scp(services=[service], peers=Peers([Peer("US1")]))
    entity = AE("US1")
    entity.add_requested_context(WORKLIST_FIND)
    answer = await asyncio.to_thread(
        entity.associate, "127.0.0.1", scp.ports[0], ae_title="SONONODE"
    )
    assert not answer.is_established


# -- in the words of the machine -------------------------------------------------------

HAN = "王^小东"
SPOKEN = [
    (["ISO_IR 192"], "", ["ISO_IR 192"], f"Wang^Fang={HAN}"),
    (["GB18030"], "", ["GB18030"], f"Wang^Fang={HAN}"),
    (["", "ISO 2022 IR 58"], "", ["", "ISO 2022 IR 58"], f"Wang^Fang={HAN}"),
    (["ISO_IR 100"], "", ["ISO_IR 100"], "Wang^Fang"),
    (["ISO 2022 IR 100"], "", ["ISO_IR 100"], "Wang^Fang"),
    ([], "", [], "Wang^Fang"),
    ([], "GB18030", ["GB18030"], f"Wang^Fang={HAN}"),
    (["ISO_IR 100"], "ISO_IR 192", ["ISO_IR 192"], f"Wang^Fang={HAN}"),
    (["ISO 2022 IR 87"], "", [], "Wang^Fang"),
]


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
@pytest.mark.parametrize(("asked", "always", "told", "name"), SPOKEN)
def test_a_machine_is_answered_in_the_character_set_that_it_reads(
    asked: list[str], always: str, told: list[str], name: str, syntax: UID
) -> None:
    patient = PatientIdentity("P1", f"Wang^Fang={HAN}", date(1980, 2, 3), "F")
    answer = answer_of(listed(patient), "US1")
    written = encode_answer(answer, spoken(tuple(asked), always), syntax)
    raw = encode(written, syntax.is_implicit_VR, True)
    assert raw is not None
    read = read_identifier(BytesIO(raw), syntax)
    assert list(read.character_sets) == told
    key = read.key("00100010")
    assert key is not None
    assert key.values == (name,)
    if "ISO 2022 IR 58" in told:
        assert b"=\x1b$)A\xcd\xf5^\x1b$)A\xd0\xa1\xb6\xab" in raw


@pytest.mark.parametrize("asked", [["ISO_IR 100"], [], ["", "ISO 2022 IR 58"]])
def test_a_name_that_does_not_fit_is_told_in_unicode_instead_of_broken(
    asked: list[str],
) -> None:
    rare = PatientIdentity("P9", "=王^镕䶮", date(1980, 2, 3), "F")
    answer = answer_of(listed(rare), "US1")
    syntax = ExplicitVRLittleEndian
    raw = encode(encode_answer(answer, spoken(tuple(asked)), syntax), False, True)
    assert raw is not None
    read = read_identifier(BytesIO(raw), syntax)
    assert read.character_sets == ("ISO_IR 192",)
    assert read.key("00100010").values == ("=王^镕䶮",)  # type: ignore[union-attr]


async def test_a_machine_without_character_set_gets_the_one_entered_for_it(
    store: Store, serve: Serve
) -> None:
    await place(store)
    port = await serve(character_sets={"US1": "GB18030"})
    (answer, _), _ = await ask(port, make_query())
    assert str(answer.PatientName) == "Wang^Fang=王^芳"
    query = make_query(PatientName=PersonName("王*".encode("gb18030")))
    assert steps((await ask(port, query))[0]) == {"S1", "S3"}


def listed(patient: PatientIdentity) -> ListedOrder:
    order = Order(
        uuid4(),
        uuid4(),
        OrderStatus.SCHEDULED,
        OrderSource.REST,
        "",
        make_step(1, 21, 9),
    )
    return ListedOrder(order, patient)


# -- wildcards -------------------------------------------------------------------------

COMPONENTS = st.text("abcÄéz 王小东", min_size=1, max_size=6).filter(
    lambda part: part == part.strip()
)
NAMES = st.lists(COMPONENTS, min_size=1, max_size=3).map("^".join)


def as_model(name: str) -> dict[str, Any]:
    return {"vr": "PN", "Value": [{"Alphabetic": "Nobody", "Ideographic": name}]}


@given(NAMES, st.data())
def test_a_name_is_found_by_any_part_of_it_in_any_case(
    name: str, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, len(name)))
    end = data.draw(st.integers(start, len(name)))
    pattern = data.draw(st.sampled_from([str, str.upper, str.lower]))(name)
    patterns = [
        f"{pattern[:start]}*{pattern[end:]}",
        f"{pattern[:start]}{'?' * (end - start)}{pattern[end:]}",
    ]
    for asked in patterns:
        assert matches(Key("00100010", "PN", (asked,)), as_model(name)), asked


@given(NAMES, st.sampled_from(["q", "Q*", "*q*", "?q", "=q*", "东q"]))
def test_a_name_is_not_found_by_a_letter_that_it_lacks(name: str, asked: str) -> None:
    assert not matches(Key("00100010", "PN", (asked,)), as_model(name))
