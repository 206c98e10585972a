"""Who may call, and what each machine may store (PS3.8 9.3.4, PS3.4 B, PS3.11 C.3)."""

import asyncio
from collections.abc import Callable, Mapping
from io import BytesIO
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.filewriter import dcmwrite
from pydicom.uid import (
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
    UltrasoundImageStorage,
)
from pynetdicom import AE
from pynetdicom.association import Association

from config.settings import SettingsError, load_settings
from dicom_scp.receiving import scp as listening
from dicom_scp.receiving.peers import Peer, Peers, ServiceName
from dicom_scp.receiving.scp import supported_contexts
from dicom_scp.receiving.storage import (
    CINES,
    DOCUMENTS,
    LOSSLESS,
    LOSSY,
    PICTURES,
    SYNTAXES,
    UNCOMPRESSED,
    VIDEO,
    is_storage_class,
)
from node import parts
from node.domain.audit import Outcome
from node.domain.errors import ErrorKind, NodeError
from node.domain.study import Duplicates
from node.imaging import why_undecodable
from node.store import audit, studies, versions
from node.store.store import Store
from tests.dicom_scp.conftest import StartScp
from tests.dicom_scp.instances import data_set_bytes, make_instance, stored
from tests.dicom_scp.receiving.test_scp import (
    associate,
    count_of_instances,
    encoded,
    objects_on_disk,
    send,
    send_raw,
)

PRIVATE_CLASS = "1.2.840.113619.4.2.77"
CT = "1.2.840.10008.5.1.4.1.1.2"


def answer_of(association: Association) -> tuple[int, int, int]:
    assert association.is_rejected
    answer = association.acceptor.primitive
    return answer.result, answer.result_source, answer.diagnostic


async def refusals(store: Store, count: int = 1) -> list[Mapping[str, str]]:
    """Return the audited refusals; they are written behind the answers."""
    async with asyncio.timeout(60):
        while True:
            async with store.db.transaction() as tx:
                entries = await audit.entries(tx, entity="ae/SONONODE")
            if len(entries) >= count:
                break
            await asyncio.sleep(0.01)
    assert len(entries) == count
    assert all(entry.outcome is Outcome.REFUSED for entry in entries)
    return [entry.detail for entry in entries]


# -- who may call ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("peer", "called", "rejection"),
    [
        (Peer("SCANNER"), "OTHER", listening.NOT_CALLED),
        (Peer("ANOTHER"), "SONONODE", listening.UNKNOWN_CALLER),
        (
            Peer("SCANNER", addresses=(ip_network("10.1.2.0/24"),)),
            "SONONODE",
            listening.WRONG_ADDRESS,
        ),
        (
            Peer("SCANNER", certificates=frozenset({"ab" * 32})),
            "SONONODE",
            listening.NO_CERTIFICATE,  # on the plain port nobody can show one
        ),
    ],
    ids=["called", "calling", "address", "certificate"],
)
async def test_every_rejection_has_its_answer_and_its_reason_in_the_audit(
    peer: Peer,
    called: str,
    rejection: listening.Rejection,
    start_scp: StartScp,
    store: Store,
) -> None:
    scp = await start_scp(peers=Peers([peer]))
    told = answer_of(associate(scp, called=called))
    assert told == rejection.answer
    assert told == ((1, 1, 7) if called == "OTHER" else (1, 1, 3))
    (detail,) = await refusals(store)
    assert detail == {
        "address": "127.0.0.1",
        "reason": rejection.reason,
        "answer": ",".join(map(str, told)),
    }


async def test_a_refusal_is_audited_though_the_database_was_away_for_a_moment(
    start_scp: StartScp, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, away = audit.record, [True]

    async def sometimes(*told: Any) -> None:
        if away:
            away.pop()
            raise NodeError("the database does not answer", ErrorKind.UNAVAILABLE)
        await record(*told)

    monkeypatch.setattr(audit, "record", sometimes)
    scp = await start_scp(peers=Peers([Peer("OTHER")]))
    assert not associate(scp).is_established
    assert len(await refusals(store)) == 1
    assert not away


async def test_peer_calls_from_its_own_addresses(start_scp: StartScp) -> None:
    peer = Peer("SCANNER", addresses=(ip_network("127.0.0.0/8"),))
    scp = await start_scp(peers=Peers([peer]))
    association = associate(scp)
    assert association.is_established
    association.release()


async def test_one_machine_cannot_take_the_places_of_the_others(
    start_scp: StartScp, store: Store
) -> None:
    peers = Peers([Peer("SCANNER", max_associations=1), Peer("OTHER")])
    scp = await start_scp(peers=peers)
    first = associate(scp)
    assert first.is_established
    assert answer_of(associate(scp)) == (2, 3, 2)
    other = associate(scp, calling="OTHER")
    assert other.is_established
    other.release()
    first.release()
    (detail,) = await refusals(store)
    assert detail["reason"] == listening.TOO_MANY_OF_PEER.reason


async def test_peer_without_the_service_may_only_verify(start_scp: StartScp) -> None:
    peer = Peer("SCANNER", services=frozenset({ServiceName.WORKLIST}))
    scp = await start_scp(peers=Peers([peer]))
    echo = associate(scp)
    assert echo.send_c_echo().Status == 0x0000
    echo.release()
    assert not associate(scp, (UltrasoundImageStorage, RLELossless)).is_established


# -- what is stored --------------------------------------------------------------------


def test_everything_that_ultrasound_sends_is_negotiated() -> None:
    offered = {
        str(c.abstract_syntax): set(map(str, c.transfer_syntax or ()))
        for c in supported_contexts()
    }
    root = "1.2.840.10008.5.1.4.1.1"
    pictures = ("6.1", "6", "6.2", "7", "7.1", "7.2", "7.3")
    cines = ("3.1", "3", "7.4")
    documents = ("88.11", "88.22", "88.33", "88.34", "88.59", "104.1", "66")
    states = ("11.1", "11.2", "11.3", "11.4")
    native = {f"1.2.840.10008.1.2{s}" for s in ("", ".1", ".2", ".1.99")}
    still = native | {
        f"1.2.840.10008.1.2.{s}"
        for s in ["5", "4.50", "4.51", "4.57", "4.70", "4.80", "4.81", "4.90", "4.91"]
    }
    video = {f"1.2.840.10008.1.2.4.{n}" for n in range(100, 109)}
    for end in (*pictures, *cines):
        assert offered[f"{root}.{end}"] >= still, end
    for end in cines:
        assert offered[f"{root}.{end}"] >= video, end
    for end in (*documents, *states):
        assert offered[f"{root}.{end}"] >= native, end
    assert offered[f"{root}.66.4"] >= native | {RLELossless}
    for absent in ("1.1", "2", "4", "77.1.1.1", "77.1.4.1"):  # CT, MR, video endoscopy
        assert f"{root}.{absent}" not in offered


def test_what_can_be_read_comes_before_what_can_only_be_kept() -> None:
    for group in (UNCOMPRESSED, LOSSLESS, LOSSY, VIDEO):
        unreadable = [why_undecodable(str(syntax)) is not None for syntax in group]
        assert unreadable == sorted(unreadable)


async def test_lossless_comes_first_unless_the_peer_has_an_order_of_its_own(
    start_scp: StartScp,
) -> None:
    own = Peer("OTHER", transfer_syntaxes=(JPEGBaseline8Bit, JPEGLSLossless))
    scp = await start_scp(peers=Peers([Peer("SCANNER"), own]))
    offer = [JPEGBaseline8Bit, RLELossless, JPEGLSLossless]
    chosen = {}
    for title in ("SCANNER", "OTHER"):
        entity = AE(title)
        entity.add_requested_context(UltrasoundImageStorage, offer)
        association = entity.associate("127.0.0.1", scp.ports[0], ae_title="SONONODE")
        (chosen[title],) = association.accepted_contexts[0].transfer_syntax
        association.release()
    assert chosen == {"SCANNER": RLELossless, "OTHER": JPEGBaseline8Bit}


async def test_private_class_is_stored_for_the_peer_that_has_it_and_no_other(
    start_scp: StartScp, store: Store
) -> None:
    peers = Peers([Peer("SCANNER", sop_classes=(PRIVATE_CLASS,)), Peer("OTHER")])
    scp = await start_scp(peers=peers)
    instance = make_instance(SOPClassUID=PRIVATE_CLASS)
    assert send(scp, instance) == [0x0000]
    kept = await stored(store, instance.SOPInstanceUID)
    assert kept is not None
    assert kept.sop_class_uid == PRIVATE_CLASS
    context = (PRIVATE_CLASS, instance.file_meta.TransferSyntaxUID)
    echo = ("1.2.840.10008.1.1", "1.2.840.10008.1.2")
    other = associate(scp, echo, context, calling="OTHER")
    assert [c.result for c in other.rejected_contexts] == [3]
    other.release()


def in_syntax(sop_class: str, syntax: str) -> Dataset:
    """Return an instance whose pixel data a codec of another maker could have made."""
    cine = sop_class in set(map(str, CINES))
    instance = make_instance(frames=2 if cine else 1, SOPClassUID=sop_class)
    if syntax not in set(map(str, UNCOMPRESSED)):
        noise = bytes(range(1, 201))
        count = 1 if syntax in set(map(str, VIDEO)) or not cine else 2
        instance.PixelData = encapsulate([noise] * count)
        instance["PixelData"].VR = "OB"
        instance["PixelData"].is_undefined_length = True
    instance.file_meta.TransferSyntaxUID = syntax
    return instance


def as_sent(instance: Dataset) -> bytes:
    """Return the data set in its own transfer syntax."""
    file = BytesIO()
    dcmwrite(file, instance, enforce_file_format=True)
    return data_set_bytes(file.getvalue())


async def test_every_class_in_every_syntax_is_kept_byte_for_byte(
    start_scp: StartScp, store: Store
) -> None:
    scp = await start_scp()
    made = [
        in_syntax(str(context.abstract_syntax), str(syntax))
        for context in supported_contexts()[1:]
        if str(context.abstract_syntax) not in set(map(str, DOCUMENTS))
        for syntax in context.transfer_syntax or ()
        # Each class once and each syntax once; the path does not depend on the pair.
        if str(context.abstract_syntax) == str(CINES[0])
        or syntax in (UNCOMPRESSED[0], RLELossless)
    ]
    assert {str(i.file_meta.TransferSyntaxUID) for i in made} == SYNTAXES
    assert {i.SOPClassUID for i in made} >= {*PICTURES, *CINES}
    for instance in made:
        sent = as_sent(instance)
        assert send_raw(scp, instance, sent) == 0x0000
        kept = await stored(store, instance.SOPInstanceUID)
        assert kept is not None
        assert kept.transfer_syntax_uid == instance.file_meta.TransferSyntaxUID
        with studies.open_blob(store, kept) as reader:
            assert data_set_bytes(reader.read()) == sent
        video = kept.transfer_syntax_uid in set(map(str, VIDEO))
        assert len(kept.frame_table) == (0 if video else kept.number_of_frames)


# -- the same UID again ----------------------------------------------------------------


async def test_other_content_is_kept_beside_the_first_where_the_site_wants_both(
    start_scp: StartScp, store: Store
) -> None:
    peer = Peer("SCANNER", duplicates=Duplicates.KEEP_BOTH)
    scp = await start_scp(peers=Peers([peer]))
    first = make_instance()
    uid = first.SOPInstanceUID
    other = make_instance(SOPInstanceUID=uid, StudyDescription="corrected")
    third = make_instance(SOPInstanceUID=uid, StudyDescription="again")
    assert send(scp, first, other, other, third, first) == [0] * 5
    assert len(objects_on_disk(store)) == 3
    assert await count_of_instances(store) == 1
    served = await stored(store, uid)
    assert served is not None
    with studies.open_blob(store, served) as reader:
        assert data_set_bytes(reader.read()) == encoded(first)
    async with store.db.transaction() as tx:
        kept = await versions.kept(tx)
        reader = await versions.open_version(tx, store, uid, 2)
        entries = await audit.entries(tx, entity=f"instance/{uid}")
    with reader:
        assert data_set_bytes(reader.read()) == encoded(other)
    assert [(v.number, v.study_instance_uid) for v in kept] == [
        (2, "2.25.71"),
        (3, "2.25.71"),
    ]
    assert [e.detail.get("kept_version") for e in entries] == [None, "2", "3"]


@pytest.mark.parametrize(
    "changes",
    [{"PatientID": "P-0002"}, {"StudyInstanceUID": "2.25.99"}],
    ids=["patient", "study"],
)
async def test_version_that_names_another_patient_or_study_is_refused_all_the_same(
    changes: Mapping[str, Any], start_scp: StartScp, store: Store
) -> None:
    peer = Peer("SCANNER", duplicates=Duplicates.KEEP_BOTH)
    scp = await start_scp(peers=Peers([peer]))
    first = make_instance()
    other = make_instance(SOPInstanceUID=first.SOPInstanceUID, **changes)
    assert send(scp, first, other) == [0x0000, 0x0111]
    assert len(objects_on_disk(store)) == 1
    async with store.db.transaction() as tx:
        assert await versions.count(tx) == 0
        assert (await studies.counts(tx))["patients"] == 1


async def test_version_whose_object_was_lost_with_its_process_is_forgotten(
    start_scp: StartScp, store: Store
) -> None:
    peers = Peers([Peer("SCANNER", duplicates=Duplicates.KEEP_BOTH)])
    scp = await start_scp(peers=peers, process="scp-7")
    first = make_instance()
    other = make_instance(SOPInstanceUID=first.SOPInstanceUID, Rows=32)
    send(scp, first, other)
    async with store.db.transaction() as tx:
        (name,) = await versions.of_process(tx, "scp-7")
    store.blobs.delete(name)
    await start_scp(peers=peers, process="scp-7")
    async with store.db.transaction() as tx:
        assert await versions.count(tx) == 0
    assert await count_of_instances(store) == 1


# -- settings --------------------------------------------------------------------------


@pytest.fixture
def settings_of(tmp_path: Path) -> Callable[[str], Any]:
    def make(peers: str) -> Any:
        environment = {"SONONODE_DATA": str(tmp_path), "SONONODE_DICOM__PEERS": peers}
        return load_settings(environment)

    return make


def test_peer_is_as_the_site_entered_it(settings_of: Callable[[str], Any]) -> None:
    (peer,) = parts.peers_of(
        settings_of(
            '[{"ae_title": "US1", "sop_classes": ["1.2.840.113619.4.2"],'
            ' "transfer_syntaxes": ["1.2.840.10008.1.2.4.80"],'
            ' "duplicates": "keep-both", "maximum_associations": 2, "coerce":'
            ' [{"keyword": "StationName", "action": "set", "value": "ROOM1"}]}]'
        )
    )
    assert peer.sop_classes == ("1.2.840.113619.4.2",)
    assert peer.transfer_syntaxes == (JPEGLSLossless,)
    assert peer.duplicates is Duplicates.KEEP_BOTH
    assert peer.max_associations == 2
    assert [(rule.keyword, rule.value) for rule in peer.coerce] == [
        ("StationName", "ROOM1")
    ]


@pytest.mark.parametrize(
    ("entry", "fault"),
    [
        ('"sop_classes": ["1.2.840.10008.5.1.4.31"]', "sop_classes"),  # the worklist's
        ('"sop_classes": ["no uid"]', "sop_classes"),
        ('"transfer_syntaxes": ["1.2.3"]', "transfer_syntaxes"),
        ('"duplicates": "replace"', "duplicates"),
        ('"maximum_associations": -1', "maximum_associations"),
        ('"certificate": "abc"', "certificate"),
        (f'"certificate": "{"ab" * 32}"', "certificate"),  # without any TLS
        ('"coerce": [{"keyword": "Rows", "action": "set"}]', "coerce[1].keyword"),
        ('"coerce": [{"keyword": "PatientID", "action": "x"}]', "coerce[1].action"),
        ('"coerce": [{"keyword": "PatientID"}]', "coerce[1].action"),
    ],
)
def test_every_fault_of_a_peer_is_named(
    entry: str, fault: str, settings_of: Callable[[str], Any]
) -> None:
    with pytest.raises(SettingsError) as caught:
        parts.peers_of(settings_of(f'[{{"ae_title": "US1", {entry}}}]'))
    assert [told.split(": ")[0] for told in caught.value.faults] == [
        f"dicom.peers[1].{fault}"
    ]


def test_only_classes_of_storage_can_be_entered() -> None:
    assert is_storage_class(PRIVATE_CLASS)
    assert is_storage_class(CT)
    assert not is_storage_class("1.2.840.10008.1.1")
    assert not is_storage_class("1..2")


def test_a_star_lets_strangers_store_beside_the_peers() -> None:
    worklist = Peer("LOGIQ", services=frozenset({ServiceName.WORKLIST}))
    peers = Peers([worklist], allowed_titles=["*"])

    stranger = peers.caller("ANYBODY")

    assert stranger is not None
    assert ServiceName.WORKLIST not in stranger.services
    assert peers.caller("LOGIQ") is worklist
    assert peers.known("*") is None
    assert Peers([worklist]).caller("ANYBODY") is None
