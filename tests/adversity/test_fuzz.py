"""Thousands of damaged data sets and PDUs (PS3.5 7, PS3.7 6.3, PS3.8 9.3).

Each is answered or its connection ends; the process goes on, takes no memory for it,
and never answers 0110: whatever can be wrong with an object has a status of its own.
`SONONODE_FUZZ` is how many cases there are; a failure names the one to look at.
"""

import asyncio
import os
from collections.abc import Callable
from io import BytesIO
from random import Random

import psutil
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
)

from node.store import audit
from node.store.store import Store
from node.workflow.intake import data_set_offset
from tests.adversity.mutations import mutated
from tests.adversity.raw_peer import (
    ACCEPT,
    DATA,
    RELEASE_RP,
    RELEASE_RQ,
    RawPeer,
    associate_rq,
    data_pdus,
    store_command,
)
from tests.dicom_scp.instances import make_instance
from tests.dicom_scp.receiving.test_scp_process import Process, start_process

__all__ = ["start_process"]  # a fixture

CASES = int(os.environ.get("SONONODE_FUZZ", "10000"))
DATA_SETS, CONVERSATIONS = CASES * 7 // 10, CASES * 3 // 10
PER_ASSOCIATION = 50
PROCESSING_FAILURE = 0x0110
UID_SIGNS = 20
ROOM_BYTES = 100 << 20

SYNTAXES = (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
    JPEGBaseline8Bit,
)


class Seed:
    """A sound data set in one transfer syntax, under a new UID as often as asked."""

    def __init__(self, syntax: str) -> None:
        self.syntax = syntax
        self.instance = _instance(syntax)
        self.sop_class = str(self.instance.SOPClassUID)

    def encoded(self, sop_instance_uid: str) -> bytes:
        self.instance.SOPInstanceUID = sop_instance_uid
        self.instance.file_meta.MediaStorageSOPInstanceUID = sop_instance_uid
        file = BytesIO()
        self.instance.save_as(file, enforce_file_format=True)
        part10 = file.getvalue()
        return part10[data_set_offset(part10) :]


def _instance(syntax: str) -> Dataset:
    instance = make_instance(rows=16, columns=16)
    region, code = Dataset(), Dataset()
    region.RegionSpatialFormat, region.PhysicalDeltaX = 1, 0.01
    code.CodeValue, code.CodeMeaning = "76752008", "乳房"
    region.add_new(0x00091010, "LO", "private")
    instance.SequenceOfUltrasoundRegions = [region, region]
    instance.AnatomicRegionSequence = [code]
    instance.add_new(0x00290010, "LO", "SIM")
    instance.add_new(0x00291001, "OB", bytes(300))
    if syntax == JPEGBaseline8Bit:
        picture = BytesIO()
        Image.new("L", (16, 16), 90).save(picture, "JPEG")
        instance.PixelData = encapsulate([picture.getvalue()] * 2)
        instance["PixelData"].is_undefined_length = True
        instance.NumberOfFrames = 2
    if syntax == ExplicitVRBigEndian:
        instance["PixelData"].VR = "OW"
    instance.file_meta.TransferSyntaxUID = syntax
    file = BytesIO()
    instance.save_as(
        file,
        implicit_vr=syntax == ImplicitVRLittleEndian,
        little_endian=syntax != ExplicitVRBigEndian,
        enforce_file_format=True,
    )
    return dcmread(BytesIO(file.getvalue()))


@pytest.fixture
async def process(store: Store, start_process: Callable[[], Process]) -> Process:
    return await asyncio.to_thread(start_process)


async def test_fuzzed_data_sets_are_answered_one_by_one(
    store: Store, process: Process
) -> None:
    before = _resident(process)

    answered = await asyncio.to_thread(_send_damaged_data_sets, process.port)

    assert PROCESSING_FAILURE not in answered
    assert {0x0000, 0xC000} <= answered
    assert _resident(process) - before < ROOM_BYTES
    assert await asyncio.to_thread(_still_answers, process)
    assert "Traceback" not in process.log.read_text("utf-8")
    async with store.db.transaction() as tx:
        assert await audit.verify(tx) > 0


async def test_fuzzed_conversations_end(process: Process) -> None:
    threads, before = process_of(process).num_threads(), _resident(process)

    await asyncio.to_thread(_talk_nonsense, process.port)

    assert await asyncio.to_thread(_still_answers, process)
    assert _resident(process) - before < ROOM_BYTES
    assert process_of(process).num_threads() <= threads + 4
    assert "Traceback" not in process.log.read_text("utf-8")


def _send_damaged_data_sets(port: int) -> set[int]:
    seeds = [Seed(str(syntax)) for syntax in SYNTAXES]
    contexts = [(seed.sop_class, seed.syntax) for seed in seeds]
    answered: set[int] = set()
    cases = iter(range(DATA_SETS))
    case = next(cases, None)
    while case is not None:
        with RawPeer(port) as peer:
            peer.send(associate_rq(contexts))
            accepted = peer.read_pdu()
            assert accepted is not None
            assert accepted[0] == ACCEPT
            for _ in range(PER_ASSOCIATION):
                if case is None:
                    break
                try:
                    status = _store_damaged(peer, seeds, case)
                except TimeoutError:
                    pytest.fail(f"data set {case} is neither answered nor refused")
                if status is None:  # the association was aborted, as it may be
                    case = next(cases, None)
                    break
                assert status != PROCESSING_FAILURE, f"data set {case}"
                answered.add(status)
                case = next(cases, None)
    return answered


def _store_damaged(peer: RawPeer, seeds: list[Seed], case: int) -> int | None:
    random = Random(case)
    number = random.randrange(len(seeds))
    seed = seeds[number]
    uid = f"2.25.{10**UID_SIGNS + case}"
    data_set = seed.encoded(uid)
    if random.random() < 0.97:
        data_set = mutated(data_set, random)
    command = store_command(seed.sop_class, uid)
    peer.send(data_pdus(2 * number + 1, command, command=True))
    peer.send(data_pdus(2 * number + 1, data_set, command=False))
    return peer.read_status()


def _talk_nonsense(port: int) -> None:
    request, *conversation = _sound_conversation()
    for case in range(CONVERSATIONS):
        random = Random(case)
        told = list(conversation)
        wounded = random.randrange(len(told) + 1)
        if wounded < len(told):
            told[wounded] = mutated(told[wounded], random)
        if random.random() < 0.3:
            random.shuffle(told)
        with RawPeer(port) as peer:
            try:
                if wounded == len(told):
                    peer.send(mutated(request, random))
                else:
                    peer.send(request)
                    peer.read_pdu()
                for part in told:
                    peer.send(part)
                peer.finish()
            except TimeoutError:
                pytest.fail(f"conversation {case} does not end")


def _sound_conversation() -> tuple[bytes, ...]:
    """Return an association request, a C-STORE-RQ, its data set and a release."""
    seed = Seed(str(ExplicitVRLittleEndian))
    uid = "2.25.4711"
    return (
        associate_rq([(seed.sop_class, seed.syntax)]),
        data_pdus(1, store_command(seed.sop_class, uid), command=True),
        data_pdus(1, seed.encoded(uid), command=False),
        RELEASE_RQ,
    )


def _still_answers(process: Process) -> bool:
    association = process.associate()
    status = association.send_c_echo()
    association.release()
    return bool(status.Status == 0x0000)


def process_of(process: Process) -> psutil.Process:
    return psutil.Process(process.process.pid)


def _resident(process: Process) -> int:
    return int(process_of(process).memory_info().rss)


def test_the_sound_conversation_is_sound(process: Process) -> None:
    request, *rest = _sound_conversation()
    with RawPeer(process.port) as peer:
        peer.send(request)
        answers = [peer.read_pdu()]
        for part in rest:
            peer.send(part)
        answers += [peer.read_pdu(), peer.read_pdu()]

    assert [answer and answer[0] for answer in answers] == [ACCEPT, DATA, RELEASE_RP]
