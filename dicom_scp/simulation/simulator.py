"""A modality simulator: invented studies, sent over C-STORE as a scanner sends.

Pictures come from a folder of samples (a manifest or ready DICOM files) or from
phantoms. Every patient is invented; identity numbers fail their own check digit, so
that none can belong to anybody.
"""

from __future__ import annotations

import csv
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from functools import partial
from itertools import zip_longest
from pathlib import Path
from queue import Empty, SimpleQueue

import numpy as np
from PIL import Image
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, JPEGBaseline8Bit, RLELossless
from pynetdicom import AE, evt

from dicom_scp.sending.scu import send_at_once
from dicom_scp.simulation.phantoms import Phantom, PhantomLesion, build_phantom
from dicom_scp.simulation.scanner import (
    Layout,
    Machine,
    Patient,
    Picture,
    View,
    build_instance,
    invalid_id_number,
)
from dicom_scp.simulation.scanner_report import build_scanner_report, with_callipers
from node.domain.errors import ErrorKind, NodeError

UidSource = Callable[[], str]


class Expectation(StrEnum):
    """What the node should do with a study."""

    READ = "read"
    NOT_READ = "not_read"  # stored and forwarded, but no AI reading
    EITHER = "either"  # somebody else's picture: nobody promised anything


# Names say what is imitated, so that nobody takes an object for the maker's own.
GE_LIKE = Machine(
    "sononode simulator", "LOGIQ-like SIM-1", "SIM-GE", "ISO_IR 192", Layout.WIDE
)
MINDRAY_LIKE = Machine(
    "sononode simulator", "Resona-like SIM-2", "SIM-MR", "GB18030", Layout.COLUMN
)
OLD_CHINESE = Machine(
    "sononode simulator",
    "DC-like SIM-3",
    "SIM-DC",
    ["", "ISO 2022 IR 58"],
    Layout.COLUMN,
)


def _patient(name: str, number: int, birth_date: str) -> Patient:
    return Patient(
        name, f"SIM-{number:06d}", birth_date, invalid_id_number(birth_date, number)
    )


PATIENTS = (
    _patient("Zhang^San=张^三", 1, "19790412"),
    _patient("Li^Na=李^娜", 2, "19661123"),
    _patient("Wang^XiaoDong=王^小东", 3, "19850930"),
    _patient("Garcia^Maria", 4, "19720115"),
    _patient("OuYang^Min=欧阳^敏", 5, "19580607"),
    _patient("Chen^Jing=陈^静", 6, "19910219"),
    _patient("Zhao^Li=赵^丽", 7, "19831205"),
    _patient("Smith^Anna", 8, "19690808"),
    _patient("Liu^Fang=刘^芳", 9, "19770325"),
)


def invented_patient(number: int) -> Patient:
    """Return one of as many women as anybody asks for; none of them exists."""
    return Patient(f"Load^{number:05d}", f"SIM-{100_000 + number}", "19700101", "")


# The others get a cine, a Doppler picture or a second visit.
SAMPLE_PATIENTS = tuple(PATIENTS[n] for n in (0, 1, 2, 3, 6, 7))


@dataclass(frozen=True)
class SimulatedStudy:
    """A study to be sent and what is known about it."""

    study_instance_uid: str
    accession_number: str
    description: str
    instances: tuple[Dataset, ...]
    expectation: Expectation
    lesions: tuple[PhantomLesion, ...] = ()
    prior: bool = False


@dataclass(frozen=True)
class _Visit:
    patient: Patient
    machine: Machine
    days_ago: int
    description: str
    views: tuple[View, ...]
    expectation: Expectation = Expectation.READ
    lesions: tuple[PhantomLesion, ...] = ()
    prior: bool = False
    measured: bool = False


def plan_demo(
    source: Path | None, *, uid: UidSource, now: datetime, limit: int | None = None
) -> list[SimulatedStudy]:
    """Return the studies of a demonstration, oldest first.

    `source` is a folder with `<set>/manifest.csv` files (the split `test` only, so that
    no picture was trained on) or with DICOM files; None means phantoms and the one real
    ultrasound cine that pydicom ships. Raises NodeError when the folder holds neither.
    """
    if source is None:
        visits = _phantom_visits(PATIENTS)
        studies = [_study(visit, n, uid, now) for n, visit in enumerate(visits, 1)]
        studies.append(_shipped_cine(uid, now))
    elif rows := _manifest_rows(source):
        # The sets hold neither cines nor Doppler nor a second visit: phantoms do.
        others = [p for p in PATIENTS if p not in SAMPLE_PATIENTS]
        phantoms = _phantom_visits(others)
        visits = [*phantoms, *_manifest_visits(source, rows)]
        studies = [_study(visit, n, uid, now) for n, visit in enumerate(visits, 1)]
    else:
        studies = list(read_studies([source]))
        if not studies:
            raise NodeError(
                f"no manifest.csv and no DICOM file in {source}", ErrorKind.SETTING
            )
    return studies[:limit]


# -- phantoms ------------------------------------------------------------------------


def _phantom_visits(wanted: Collection[Patient]) -> list[_Visit]:
    zhang, li, wang, garcia, ouyang, chen, zhao, smith, liu = PATIENTS
    fibroadenoma = PhantomLesion(
        22, 15, 14, 8, posterior_features="enhancement", assessment_category="3"
    )
    carcinoma = PhantomLesion(
        24,
        16,
        11,
        13,
        shape="irregular",
        margin=("indistinct", "spiculated"),
        lesion_boundary="echogenic_halo",
        posterior_features="shadowing",
        calcifications=("in_mass",),
        assessment_category="5",
    )
    cyst = PhantomLesion(
        20,
        14,
        10,
        9.5,
        shape="round",
        echo_pattern="anechoic",
        posterior_features="enhancement",
        assessment_category="2",
    )
    papillary = PhantomLesion(
        24,
        17,
        14,
        10,
        shape="irregular",
        margin=("microlobulated",),
        echo_pattern="complex",
        posterior_features="combined",
        calcifications=("macro",),
        assessment_category="4B",
    )
    in_situ = PhantomLesion(
        21,
        16,
        13,
        9,
        shape="irregular",
        margin=("angular",),
        echo_pattern="isoechoic",
        calcifications=("intraductal", "outside_mass"),
        assessment_category="4C",
    )
    lipoma = PhantomLesion(
        23, 13, 15, 6, echo_pattern="hyperechoic", assessment_category="2"
    )
    small = PhantomLesion(
        23, 15, 8, 6, margin=("microlobulated",), assessment_category="3"
    )
    grown = replace(small, width_mm=12, height_mm=9.5, assessment_category="4A")
    jpeg: UID = JPEGBaseline8Bit
    rle: UID = RLELossless
    plans: list[partial[_Visit]] = [
        partial(
            _visit,
            ouyang,
            GE_LIKE,
            370,
            "Breast US, first visit",
            (small,),
            51,
            prior=True,
        ),
        partial(
            _visit,
            zhang,
            GE_LIKE,
            0,
            "Breast US",
            (fibroadenoma,),
            11,
            views=2,
            measured=True,
        ),
        partial(
            _visit,
            li,
            MINDRAY_LIKE,
            0,
            "乳腺超声",
            (carcinoma,),
            21,
            syntax=jpeg,
            views=2,
        ),
        partial(_visit, wang, OLD_CHINESE, 0, "乳腺超声", (papillary,), 31, syntax=rle),
        partial(
            _visit,
            liu,
            GE_LIKE,
            0,
            "Breast US, cine",
            (cyst,),
            41,
            syntax=jpeg,
            cine=24,
        ),
        partial(
            _visit,
            ouyang,
            GE_LIKE,
            0,
            "Breast US, follow-up",
            (grown,),
            52,
            measured=True,
        ),
        partial(
            _visit,
            chen,
            MINDRAY_LIKE,
            0,
            "乳腺彩色多普勒",
            (in_situ,),
            61,
            doppler=True,
        ),
        partial(_visit, garcia, GE_LIKE, 0, "Breast US", (), 91),
        partial(
            _visit,
            zhao,
            MINDRAY_LIKE,
            0,
            "乳腺超声",
            (in_situ,),
            71,
            syntax=rle,
            side="R",
        ),
        partial(
            _visit, smith, GE_LIKE, 0, "Breast US", (lipoma,), 81, calibrated=False
        ),
    ]
    with ThreadPoolExecutor(2) as pool:  # numpy leaves the interpreter to others
        drawn = [pool.submit(plan) for plan in plans if plan.args[0] in wanted]
        return [visit.result() for visit in drawn]


def _visit(
    patient: Patient,
    machine: Machine,
    days_ago: int,
    description: str,
    lesions: tuple[PhantomLesion, ...],
    seed: int,
    *,
    views: int = 1,
    syntax: UID = ExplicitVRLittleEndian,
    cine: int = 0,
    doppler: bool = False,
    calibrated: bool = True,
    prior: bool = False,
    side: str = "L",
    measured: bool = False,
) -> _Visit:
    pictures = []
    for n in range(views):
        phantom = build_phantom(
            lesions, seed=seed + n, columns=700 if cine else 760, rows=600
        )
        frames = _sweep(phantom, cine) if cine else (phantom.pixels,)
        pictures.append(
            View(
                frames=frames,
                mm_per_pixel=phantom.mm_per_pixel if calibrated else None,
                laterality=side,
                colour=doppler or machine.layout is Layout.COLUMN,
                transfer_syntax=syntax,
                doppler=doppler,
            )
        )
    return _Visit(
        patient,
        machine,
        days_ago,
        description,
        tuple(pictures),
        Expectation.NOT_READ if doppler else Expectation.READ,
        lesions,
        prior,
        measured,
    )


def _sweep(phantom: Phantom, frames: int) -> tuple[Picture, ...]:
    """Slide the probe along the skin: a window that wanders over one wide slice."""
    width = phantom.pixels.shape[1] - 2 * frames
    return tuple(phantom.pixels[:, 2 * n : 2 * n + width] for n in range(frames))


# -- samples -------------------------------------------------------------------------


def _manifest_rows(source: Path) -> list[dict[str, str]]:
    """Return the shipped rows of the split `test` of every manifest below `source`."""
    rows: list[dict[str, str]] = []
    manifests = [source / "manifest.csv", *sorted(source.glob("*/manifest.csv"))]
    for manifest in manifests:
        if not manifest.is_file():
            continue
        with manifest.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                wanted = row.get("split") == "test" and row.get("shipped") == "1"
                if wanted and _picture_path(source, row) is not None:
                    rows.append(row)
    return rows


def _picture_path(source: Path, row: dict[str, str]) -> Path | None:
    for base in (source, source.parent):
        path = (base / row["file"]).resolve()
        if path.is_file() and path.is_relative_to(base.resolve()):
            return path
    return None


def _manifest_visits(source: Path, rows: list[dict[str, str]]) -> list[_Visit]:
    """Pick pictures of every set and grade: calibrated first, clean of marks first."""

    def rank(row: dict[str, str]) -> tuple[bool, int, str]:
        marks = int(row.get("calliper_marks") or 0) + int(row.get("text_run") or 0)
        return (not row.get("pixel_mm"), marks, row["id"])

    picked = _spread(sorted(rows, key=rank), wanted=6)
    machines = (GE_LIKE, MINDRAY_LIKE, OLD_CHINESE)
    syntaxes: tuple[UID, ...] = (ExplicitVRLittleEndian, JPEGBaseline8Bit, RLELossless)
    visits = []
    for n, row in enumerate(picked):
        machine = machines[n % 3]
        path = _picture_path(source, row)
        assert path is not None  # noqa: S101  - rows without a picture were left out
        view = View(
            frames=(np.asarray(Image.open(path).convert("L")),),
            mm_per_pixel=float(row["pixel_mm"]) if row.get("pixel_mm") else None,
            laterality="R" if row.get("view") == "right" else "L",
            colour=machine.layout is Layout.COLUMN,
            transfer_syntax=syntaxes[n % 3],
            simulated=False,
        )
        text = f"Breast US, public set {row['set']}"
        visits.append(_Visit(SAMPLE_PATIENTS[n], machine, 0, text, (view,)))
    return visits


def _spread(rows: list[dict[str, str]], *, wanted: int) -> list[dict[str, str]]:
    """Take turns between sets, and inside a set between grades."""
    sets: dict[str, dict[str, list[dict[str, str]]]] = {}
    for row in rows:
        grade = (row.get("birads") or row["label"]).upper()
        sets.setdefault(row["set"], {}).setdefault(grade, []).append(row)
    orders = [
        [row for turn in zip_longest(*grades.values()) for row in turn if row]
        for grades in sets.values()
    ]
    return [row for turn in zip_longest(*orders) for row in turn if row][:wanted]


def _shipped_cine(uid: UidSource, now: datetime) -> SimulatedStudy:
    """Return the real cine that pydicom ships, with its own pixels and regions.

    It shows a heart, and is sent saying so: it must be stored and not be read. Its
    regions are stale as well: nothing in it may be measured.
    """
    (study,) = read_studies([Path(str(get_testdata_file("examples_ybr_color.dcm")))])
    (instance,) = study.instances
    instance.StudyInstanceUID, instance.SeriesInstanceUID = uid(), uid()
    instance.SOPInstanceUID = uid()
    instance.file_meta.MediaStorageSOPInstanceUID = UID(instance.SOPInstanceUID)
    instance.PatientName, instance.PatientID = "Real^Cine", "SIM-000099"
    instance.StudyDate, instance.StudyTime = f"{now:%Y%m%d}", f"{now:%H%M%S}"
    instance.AccessionNumber = f"SIM{now:%y%m%d}99"
    instance.StudyDescription = "Real cine (heart) shipped with pydicom"
    instance.BodyPartExamined = "HEART"
    return SimulatedStudy(
        study_instance_uid=instance.StudyInstanceUID,
        accession_number=instance.AccessionNumber,
        description=instance.StudyDescription,
        instances=(instance,),
        expectation=Expectation.NOT_READ,
    )


def read_studies(paths: Iterable[Path]) -> Iterator[SimulatedStudy]:
    """Yield the studies among DICOM files and folders, as they are."""
    grouped: dict[str, list[Dataset]] = {}
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if not file.is_file() or not _is_part10(file):
                continue
            dataset = dcmread(file)
            grouped.setdefault(str(dataset.StudyInstanceUID), []).append(dataset)
    for study_instance_uid, instances in grouped.items():
        yield SimulatedStudy(
            study_instance_uid=study_instance_uid,
            accession_number=str(instances[0].get("AccessionNumber", "")),
            description=str(instances[0].get("StudyDescription", "")),
            instances=tuple(instances),
            expectation=Expectation.EITHER,
        )


def _is_part10(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(132)[128:] == b"DICM"


# -- studies -------------------------------------------------------------------------


def _study(visit: _Visit, number: int, uid: UidSource, now: datetime) -> SimulatedStudy:
    at = now - timedelta(days=visit.days_ago, minutes=3 * (20 - number))
    study_instance_uid, series_instance_uid = uid(), uid()
    accession = f"SIM{at:%y%m%d}{number:02d}"
    instances = tuple(
        build_instance(
            view,
            visit.patient,
            visit.machine,
            at=at + timedelta(seconds=20 * n),
            uids=(study_instance_uid, series_instance_uid, uid()),
            accession_number=accession,
            description=visit.description,
            instance_number=n,
        )
        for n, view in enumerate(visit.views, 1)
    )
    if visit.measured:
        instances = (*instances, _measurements(instances[0], visit.lesions, uid, at))
    return SimulatedStudy(
        study_instance_uid=study_instance_uid,
        accession_number=accession,
        description=visit.description,
        instances=instances,
        expectation=visit.expectation,
        lesions=visit.lesions,
        prior=visit.prior,
    )


def _measurements(
    image: Dataset, lesions: Sequence[PhantomLesion], uid: UidSource, at: datetime
) -> Dataset:
    """Return the Structured Report of what was measured on the scanner."""
    measured = [
        with_callipers(
            image,
            f"Lesion {number}",
            centre_mm=(lesion.x_mm, lesion.depth_mm),
            width_mm=lesion.width_mm,
            height_mm=lesion.height_mm,
        )
        for number, lesion in enumerate(lesions, 1)
    ]
    return build_scanner_report([image], measured, at=at, uids=(uid(), uid()))


# -- sending -------------------------------------------------------------------------


@dataclass(frozen=True)
class Sent:
    """The answer to one C-STORE request.

    `status` is the response status, None when the peer took no such object or went
    away; `at` is when the answer came.
    """

    study_instance_uid: str
    sop_instance_uid: str
    status: int | None
    at: datetime

    @property
    def stored(self) -> bool:
        """Tell whether the node promised that it holds the instance."""
        return self.status == 0


def send(
    studies: Sequence[SimulatedStudy],
    *,
    host: str,
    port: int,
    clock: Callable[[], datetime],
    called_ae: str = "SONONODE",
    calling_ae: str = "SIMULATOR",
    associations: int = 2,
    progress: Callable[[Sent], None] | None = None,
    timeout_s: float = 30.0,
) -> list[Sent]:
    """Send studies over parallel associations; return every answer in time order.

    One study keeps to one association, as a scanner does. `progress` is called for each
    answer, from the sending threads, one at a time. Raises NodeError(UNAVAILABLE) when
    no association could be opened at all.
    """
    queue: SimpleQueue[SimulatedStudy] = SimpleQueue()
    for study in studies:
        queue.put(study)
    answers: list[Sent] = []
    refused: list[str] = []
    lock = threading.Lock()

    def note(answer: Sent) -> None:
        with lock:
            answers.append(answer)
            if progress is not None:
                progress(answer)

    def work() -> None:
        while True:
            try:
                study = queue.get_nowait()
            except Empty:
                return
            reason = _send_study(
                study, (host, port), (calling_ae, called_ae), clock, note, timeout_s
            )
            if reason is not None:
                refused.append(reason)

    count = max(1, min(associations, len(studies)))
    threads = [threading.Thread(target=work, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if refused and len(refused) == len(studies):
        raise NodeError(
            f"{called_ae} at {host}:{port}: {refused[0]}", ErrorKind.UNAVAILABLE
        )
    return sorted(answers, key=lambda answer: answer.at)


def _send_study(
    study: SimulatedStudy,
    address: tuple[str, int],
    titles: tuple[str, str],
    clock: Callable[[], datetime],
    note: Callable[[Sent], None],
    timeout_s: float,
) -> str | None:
    """Send one study on its own association; return why none could be opened."""
    entity = AE(ae_title=titles[0])
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = timeout_s
    entity.connection_timeout = timeout_s
    wanted = {
        (str(i.SOPClassUID), str(i.file_meta.TransferSyntaxUID))
        for i in study.instances
    }
    for sop_class_uid, transfer_syntax in sorted(wanted):
        entity.add_requested_context(sop_class_uid, transfer_syntax)
    association = entity.associate(
        *address,
        ae_title=titles[1],
        max_pdu=131072,
        evt_handlers=[(evt.EVT_CONN_OPEN, send_at_once)],
    )
    established = association.is_established
    for instance in study.instances:
        status: int | None = None
        if association.is_established:
            try:
                response = association.send_c_store(instance)
                status = int(response.Status) if "Status" in response else None
            except ValueError:
                status = None  # the peer accepted no context for this object
        note(
            Sent(
                study.study_instance_uid,
                str(instance.SOPInstanceUID),
                status,
                clock(),
            )
        )
    if association.is_established:
        association.release()
    if established:
        return None
    return "association rejected" if association.is_rejected else "no answer"
