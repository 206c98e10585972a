"""What a site corrects in headers, and what stays in the object of what was there.

Original Attributes Sequence: PS3.3 C.12.1.1.9. Status B000: PS3.4 B.2.3.
"""

from collections import Counter
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from random import Random

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.multival import MultiValue
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    EncapsulatedPDFStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from dicom_scp.receiving.coercion import (
    COERCIBLE,
    MAX_HELD,
    ORIGINAL_ATTRIBUTES,
    Coercer,
    Rule,
)
from dicom_scp.receiving.coercion import Action as A
from dicom_scp.receiving.encoding import check_whole
from dicom_scp.receiving.peers import Peer, Peers
from node.domain.errors import ErrorKind, NodeError
from node.store import audit, identities, studies
from node.store.store import Store
from tests.adversity.mutations import mutated
from tests.dicom_scp.conftest import StartScp
from tests.dicom_scp.instances import data_set_bytes, make_instance, stored
from tests.dicom_scp.receiving.test_scp import (
    associate,
    compressed,
    encoded,
    objects_on_disk,
    send_raw,
)

AT = datetime(2026, 11, 21, 8, 0, tzinfo=UTC)
ISSUER = Rule("IssuerOfPatientID", A.SET, "HOSPITAL")


def coerced(
    data_set: bytes,
    *rules: Rule,
    syntax: str = ExplicitVRLittleEndian,
    step: int = 1 << 20,
) -> tuple[bytes, tuple[str, ...]]:
    """Return what comes of a data set that arrives in fragments of `step` bytes."""
    coercer = Coercer(rules, syntax, source="ROOM1", system="SONONODE", at=AT)
    passed = b""
    for at in range(0, len(data_set), step):
        passed += coercer.take(memoryview(data_set)[at : at + step])
    return passed + coercer.finish(), coercer.changes


def as_read(data_set: bytes) -> Dataset:
    """Return an Explicit VR Little Endian data set as pydicom reads it."""
    return read_dataset(BytesIO(data_set), False, True)


@pytest.mark.parametrize(
    ("rule", "before", "after"),
    [
        (Rule("StationName", A.SET, "ROOM1"), "OLD", "ROOM1"),
        (Rule("StationName", A.SET, "ROOM1"), None, "ROOM1"),
        (Rule("BodyPartExamined", A.DEFAULT, "BREAST"), None, "BREAST"),
        (Rule("BodyPartExamined", A.DEFAULT, "BREAST"), "  ", "BREAST"),
        (Rule("BodyPartExamined", A.DEFAULT, "BREAST"), "THYROID", "THYROID"),
        (Rule("PatientAddress", A.REMOVE), "a street", ""),
        (Rule("PatientID", A.PREFIX, "B-"), "17", "B-17"),
        (Rule("PatientID", A.PREFIX, "B-"), "B-17", "B-17"),
        (Rule("PatientID", A.PREFIX, "B-"), "", ""),
        (Rule("OperatorsName", A.PREFIX, "Dr "), "A\\B", "Dr A\\Dr B"),
        (Rule("AccessionNumber", A.REPLACE, "", "^0+"), "0007", "7"),
        (Rule("PatientID", A.REPLACE, r"\2/\1", "(..)-(.*)"), "AB-17", "17/AB"),
    ],
)
def test_rule_does_what_it_says(rule: Rule, before: str | None, after: str) -> None:
    assert rule.fault() == ""
    instance = make_instance()
    if before is not None:
        values = before.split("\\")
        setattr(instance, rule.keyword, values if len(values) > 1 else before)
    passed, changes = coerced(encoded(instance), rule)
    read = as_read(passed)
    shown = read.get(rule.keyword, None) or ""
    told = "\\".join(map(str, shown)) if isinstance(shown, MultiValue) else str(shown)
    assert told.strip() == after.strip()
    unchanged = (before or "").strip() == after.strip()
    assert bool(changes) != unchanged
    if unchanged:
        assert passed == encoded(instance)


@pytest.mark.parametrize(
    "syntax",
    [
        ExplicitVRLittleEndian,
        ImplicitVRLittleEndian,
        ExplicitVRBigEndian,
        DeflatedExplicitVRLittleEndian,
    ],
)
@pytest.mark.parametrize("step", [1, 7, 1 << 20])
def test_everything_else_stays_byte_for_byte_in_every_syntax(
    syntax: str, step: int, tmp_path: Path
) -> None:
    path = compressed(
        tmp_path,
        syntax,
        frames=2,
        rows=8,
        columns=8,
        PatientAddress="x",
    )
    sent = data_set_bytes(path.read_bytes())
    rules = (ISSUER, Rule("PatientAddress", A.REMOVE))
    passed, changes = coerced(sent, *rules, syntax=syntax, step=step)
    assert changes == (
        "IssuerOfPatientID by rule 1 (set)",
        "PatientAddress by rule 2 (remove)",
    )
    check_whole(memoryview(passed), len(passed), passed[-4096:], syntax)
    head = path.read_bytes()[: -len(sent)]
    before, after = dcmread(path), dcmread(BytesIO(head + passed))
    assert after.IssuerOfPatientID == "HOSPITAL"
    del before.PatientAddress
    del after.IssuerOfPatientID, after.OriginalAttributesSequence
    assert after == before


def test_what_was_there_before_stays_in_the_object() -> None:
    instance = make_instance(StationName="OLD", PatientAddress="a street")
    rules = (
        ISSUER,
        Rule("StationName", A.SET, "ROOM1"),
        Rule("PatientAddress", A.REMOVE),
    )
    passed, _ = coerced(encoded(instance), *rules)
    (item,) = as_read(passed).OriginalAttributesSequence
    assert item.ReasonForTheAttributeModification == "COERCE"
    assert item.ModifyingSystem == "SONONODE"
    assert item.SourceOfPreviousValues == "ROOM1"
    assert item.AttributeModificationDateTime == "20261121080000.000000+0000"
    (original,) = item.ModifiedAttributesSequence
    assert {e.keyword: str(e.value or "") for e in original} == {
        "StationName": "OLD",
        "IssuerOfPatientID": "",
        "PatientAddress": "a street",
    }


@pytest.mark.parametrize("undefined", [False, True])
def test_earlier_history_of_an_object_is_kept(undefined: bool) -> None:
    earlier = Dataset()
    earlier.ModifiedAttributesSequence = [Dataset()]
    earlier.AttributeModificationDateTime = "2020"
    earlier.ModifyingSystem, earlier.SourceOfPreviousValues = "PACS", ""
    earlier.ReasonForTheAttributeModification = "CORRECT"
    instance = make_instance(OriginalAttributesSequence=[earlier])
    instance["OriginalAttributesSequence"].is_undefined_length = undefined
    passed, _ = coerced(encoded(instance), ISSUER)
    first, second = as_read(passed).OriginalAttributesSequence
    assert (first.ModifyingSystem, second.ModifyingSystem) == ("PACS", "SONONODE")
    same, _ = coerced(encoded(instance), Rule("StationName", A.PREFIX, "x"))
    assert same == encoded(instance)


@pytest.mark.parametrize(
    ("sets", "fits"),
    [
        ("ISO_IR 192", True),
        ("GB18030", True),
        (["", "ISO 2022 IR 58"], True),
        ("ISO_IR 100", False),
        (None, False),
    ],
)
def test_new_text_is_written_in_the_character_set_of_the_object(
    sets: str | list[str] | None, fits: bool
) -> None:
    instance = make_instance(
        PatientName="Zhang^San", StudyDescription="US", SpecificCharacterSet=sets
    )
    data_set = encoded(instance)
    rule = Rule("InstitutionName", A.SET, "示范医院")
    if fits:
        read = as_read(coerced(data_set, rule)[0])
        read.decode()
        assert read.InstitutionName.replace("\x1b$)A", "") == "示范医院"
    else:
        with pytest.raises(NodeError, match="character set") as caught:
            coerced(data_set, rule)
        assert caught.value.kind is ErrorKind.RULE


def test_id_that_would_become_too_long_is_never_cut() -> None:
    instance = make_instance(PatientID="7" * 60)
    with pytest.raises(NodeError, match="no LO") as caught:
        coerced(encoded(instance), Rule("PatientID", A.PREFIX, "HOSPITAL-"))
    assert "777" not in caught.value.message


@pytest.mark.parametrize("end", [10, 60, 200, -2000, -1])
def test_truncated_data_set_does_not_come_out_whole(end: int) -> None:
    data_set = encoded(make_instance())[:end]

    def kept() -> None:
        passed, _ = coerced(data_set, ISSUER)
        check_whole(
            memoryview(passed), len(passed), passed[-8:], ExplicitVRLittleEndian
        )

    with pytest.raises(NodeError) as caught:
        kept()
    assert caught.value.kind is ErrorKind.INVALID


def test_long_value_passes_without_being_held() -> None:
    document = make_instance(PixelData=None)
    document.EncapsulatedDocument = bytes(2 * MAX_HELD)
    data_set = encoded(document)
    coercer = Coercer((ISSUER,), ExplicitVRLittleEndian, source="A", system="B", at=AT)
    most, passed = 0, 0
    for at in range(0, len(data_set), 1 << 16):
        passed += len(coercer.take(memoryview(data_set)[at : at + (1 << 16)]))
        most = max(most, len(coercer._held))
    assert most < 4096
    assert passed + len(coercer.finish()) > len(data_set)


@pytest.mark.parametrize(
    "syntax",
    [
        ExplicitVRLittleEndian,
        ImplicitVRLittleEndian,
        ExplicitVRBigEndian,
        DeflatedExplicitVRLittleEndian,
    ],
)
def test_damage_is_never_mended_and_never_another_error(
    syntax: str, tmp_path: Path
) -> None:
    path = compressed(
        tmp_path,
        syntax,
        rows=4,
        columns=4,
        PatientAddress="x",
        OriginalAttributesSequence=[Dataset()],
    )
    sent = data_set_bytes(path.read_bytes())
    rules = (
        ISSUER,
        Rule("PatientAddress", A.REMOVE),
        Rule("PatientName", A.REPLACE, "O", "a|三"),
        Rule("StudyID", A.DEFAULT, "1"),
    )
    random, counts = Random(7), Counter[str]()
    for _ in range(1500):
        damaged = mutated(sent, random)
        try:
            passed, _ = coerced(damaged, *rules, syntax=syntax, step=100)
            check_whole(memoryview(passed), len(passed), passed[-4096:], syntax)
        except NodeError:
            counts["refused"] += 1
            continue
        counts["kept"] += 1
        # Whatever is whole afterwards was whole before.
        check_whole(memoryview(damaged), len(damaged), damaged[-4096:], syntax)
    assert counts["refused"] > 300
    if syntax != DeflatedExplicitVRLittleEndian:
        assert counts["kept"] > 100


def test_header_without_end_is_refused() -> None:
    endless = encoded(make_instance())[:200] + b"\x10\x00\x10\x00SQ\0\0\xff\xff\xff\xff"
    with pytest.raises(NodeError):
        coerced(endless + b"\xfe\xff\x00\xe0\xff\xff\xff\xff" * (MAX_HELD // 8), ISSUER)


@pytest.mark.parametrize(
    ("rule", "fault"),
    [
        (Rule("StudyInstanceUID", A.SET, "1.2"), "keyword"),
        (Rule("Rows", A.SET, "1"), "keyword"),
        (Rule("PatientWeight", A.REMOVE), "keyword"),
        (Rule("StationName", A.SET), "value"),
        (Rule("StationName", A.REMOVE, "x"), "value"),
        (Rule("StationName", A.SET, "x" * 17), "value"),
        (Rule("StationName", A.SET, "a\\b"), "value"),
        (Rule("BodyPartExamined", A.SET, "breast"), "value"),
        (Rule("PatientID", A.REPLACE, "x"), "pattern"),
        (Rule("PatientID", A.REPLACE, "x", "("), "pattern"),
        (Rule("PatientID", A.REPLACE, r"\2", "(a)"), "pattern"),
        (Rule("PatientID", A.SET, "x", "a"), "pattern"),
    ],
)
def test_rule_that_cannot_be_meant_is_told(rule: Rule, fault: str) -> None:
    assert rule.fault().startswith(f"{fault}: ")


def test_nothing_that_files_or_shows_an_image_can_be_coerced() -> None:
    for keyword in COERCIBLE:
        rule = Rule(keyword, A.REMOVE)
        assert rule.vr in {"LO", "SH", "PN", "CS", "LT", "ST"}
        assert 0x00080005 < rule.tag < ORIGINAL_ATTRIBUTES
        assert rule.tag >> 16 not in (0x0020, 0x0028) or keyword in {
            "ImageComments",
            "StudyID",
        }


# -- through the listener --------------------------------------------------------------


async def test_object_is_stored_coerced_and_the_audit_names_rules_not_values(
    start_scp: StartScp, store: Store
) -> None:
    rules = (ISSUER, Rule("PatientID", A.PREFIX, "B-"))
    scp = await start_scp(peers=Peers([Peer("SCANNER", coerce=rules)]))
    instance = make_instance()
    assert send_raw(scp, instance, encoded(instance)) == 0xB000
    before = objects_on_disk(store)
    assert send_raw(scp, instance, encoded(instance)) == 0x0000  # the same bytes again
    assert objects_on_disk(store) == before
    kept = await stored(store, instance.SOPInstanceUID)
    assert kept is not None
    with studies.open_blob(store, kept) as reader:
        read = dcmread(BytesIO(reader.read()))
    assert (read.PatientID, read.IssuerOfPatientID) == ("B-P-0001", "HOSPITAL")
    assert read.PixelData == instance.PixelData
    async with store.db.transaction() as tx:
        identity = await identities.patient(tx, store, kept.patient_id)
        entries = await audit.entries(tx, entity=f"instance/{instance.SOPInstanceUID}")
    assert (identity.patient_id, identity.issuer) == ("B-P-0001", "HOSPITAL")
    (entry,) = entries
    assert entry.detail["coerced"] == (
        "PatientID by rule 2 (prefix); IssuerOfPatientID by rule 1 (set)"
    )


async def test_next_instance_of_the_study_is_audited_too(
    start_scp: StartScp, store: Store
) -> None:
    scp = await start_scp(peers=Peers([Peer("SCANNER", coerce=(ISSUER,))]))
    first, second = make_instance(), make_instance()
    association = associate(scp, (first.SOPClassUID, ExplicitVRLittleEndian))
    assert association.send_c_store(first).Status == 0xB000
    assert association.send_c_store(second).Status == 0xB000
    association.release()
    async with store.db.transaction() as tx:
        (entry,) = await audit.entries(tx, entity=f"instance/{second.SOPInstanceUID}")
    assert "IssuerOfPatientID" in entry.detail["coerced"]


async def test_rule_that_cannot_be_applied_refuses_the_instance(
    start_scp: StartScp, store: Store
) -> None:
    rule = Rule("PatientID", A.PREFIX, "HOSPITAL-")
    scp = await start_scp(peers=Peers([Peer("SCANNER", coerce=(rule,))]))
    instance = make_instance(PatientID="7" * 60)
    assert send_raw(scp, instance, encoded(instance)) == 0x0110
    assert objects_on_disk(store) == []


async def test_document_is_coerced_and_others_are_left_alone(
    start_scp: StartScp, store: Store
) -> None:
    peers = Peers([Peer("SCANNER", coerce=(ISSUER,)), Peer("OTHER")])
    scp = await start_scp(peers=peers)
    document = make_instance(SOPClassUID=EncapsulatedPDFStorage, PixelData=None)
    document.EncapsulatedDocument = b"%PDF" + bytes(100_000)
    document.Modality = "DOC"
    association = associate(
        scp, (document.SOPClassUID, ExplicitVRLittleEndian), calling="OTHER"
    )
    assert association.send_c_store(document).Status == 0x0000
    association.release()
    document.SOPInstanceUID = "2.25.75"
    document.StudyInstanceUID = "2.25.74"  # of another patient now: another issuer
    document.file_meta.MediaStorageSOPInstanceUID = document.SOPInstanceUID
    association = associate(scp, (document.SOPClassUID, ExplicitVRLittleEndian))
    assert association.send_c_store(document).Status == 0xB000
    association.release()
