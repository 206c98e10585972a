"""A whole node in one process for the review page: images, readings, /fhir, people.

The reading is written by hand where the phantom's truth says it should be, so that
no network has to be loaded; everything else is the product's own.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from io import BytesIO
from pathlib import Path
from uuid import UUID

import numpy as np
from aiohttp import web
from PIL import Image
from pydicom.dataset import Dataset

from dicom_scp.results.encode_report import ResultSettings, encode_report
from dicom_scp.results.sr import Equipment, to_part10
from dicom_scp.simulation.phantoms import Phantom, PhantomLesion, build_phantom
from dicom_scp.simulation.scanner import (
    Patient,
    View,
    build_instance,
    invalid_id_number,
)
from dicom_scp.simulation.simulator import GE_LIKE
from dicom_scp.web import dicomweb
from fhir.content.publish import publish_report
from fhir.rest.server import route_group
from fhir.security import registration
from fhir.security.authorize import Desk
from fhir.settings import FhirSettings
from node.domain.access import Role
from node.domain.finding import (
    Extent,
    Findings,
    HeatMap,
    ImageReference,
    Lesion,
    NotRead,
    PixelBox,
)
from node.domain.lexicon import FOLLOWUP_FOR_CATEGORY, FieldKey
from node.domain.outcome import CaseOutcome, Method, RecordedOutcome
from node.domain.report import Conclusions, Report, ReportStatus
from node.domain.uids import heat_map_uid, result_uid
from node.http import HttpSettings, RouteGroup, make_app
from node.store import cases, people, reports, studies
from node.store.overlays import write_overlay
from node.store.store import Store
from node.workflow.agreement import DriftSettings
from node.workflow.reporting import draft_report, revise_report
from review_ui import agreement, auditing, reconciliation, server
from tests.factories import ALGORITHM, DOCTOR
from tests.fhir.rig import TEXTS, make_settings
from tests.intake import receive_object

PASSWORD = "correct horse battery"
LOGIN = "wang"
RESULTS = ResultSettings(
    Equipment.at_site(
        "示范医院", "SONONODE", "zh-CN", "+0800", software_version="1.2.3"
    ),
)


@dataclass(frozen=True)
class Case:
    """One woman with one examination, and what the algorithm said of it."""

    name: str
    lesion: PhantomLesion
    category: str
    probability: str
    frames: int = 1
    calibrated: bool = True
    not_read: tuple[NotRead, ...] = ()
    patient_number: int = 1
    days_ago: int = 0


@dataclass
class Node:
    """A running node with its address."""

    store: Store
    url: str
    settings: FhirSettings
    reports: list[Report]

    async def receive_images(self, case: Case) -> tuple[Phantom, Dataset]:
        """Take in the image of a study that nobody has read yet."""
        number = len(self.reports) + 1
        phantom = await asyncio.to_thread(build_phantom, (case.lesion,), seed=number)
        study = f"2.25.{7000 + number}"
        dataset = _instance(case, phantom, study, number, self.store)
        await _receive(self.store, dataset)
        return phantom, dataset

    async def receive(self, case: Case) -> Report:
        """Take in a study and publish its reading; return the drafted report."""
        report = await self.draft(case)
        payload = {"report_id": str(report.id), "version": 1}
        await encode_report(self.store, payload, RESULTS)
        await publish_report(self.store, self.settings, payload)
        return report

    async def draft(self, case: Case) -> Report:
        """Take in a study and draft its report; nobody is told of it yet."""
        phantom, dataset = await self.receive_images(case)
        report = await _draft(self.store, case, phantom, dataset)
        self.reports.append(report)
        return report

    async def keep_vector(self, report: Report, *values: float) -> None:
        """Keep what the network saw in the report's lesion, zero beyond `values`."""
        (lesion,) = report.current.findings.lesions
        vector = [*values, *[0.0] * (cases.DIMENSIONS - len(values))]
        async with self.store.db.transaction() as tx:
            await cases.write_vectors(
                tx,
                report,
                model_sha="ab" * 32,
                vectors={lesion.tracking_uid: vector},
                at=self.store.clock(),
            )

    async def sign(
        self, report: Report, status: ReportStatus = ReportStatus.FINAL
    ) -> Report:
        """Let a physician sign the report as it is, or change its status."""
        async with self.store.db.transaction() as tx:
            return await revise_report(
                self.store,
                tx,
                report.id,
                status,
                report.current.findings,
                Conclusions(),
                author=DOCTOR,
                reason="because",
            )

    async def tell_outcome(self, report: Report, outcome: CaseOutcome) -> None:
        """Record what a biopsy said of the report's examination."""
        entry = RecordedOutcome(
            None, outcome, Method.BIOPSY, self.store.clock(), DOCTOR.id
        )
        async with self.store.db.transaction() as tx:
            await cases.record_outcome(tx, report, entry)


@asynccontextmanager
async def running_node(store: Store, assets: Path) -> AsyncIterator[Node]:
    """Serve page, /auth, /fhir and /dicom-web on a free port of this machine."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        settings = make_settings(
            f"{url}/fhir",
        )
        review = server.ReviewSettings(
            assets=assets, texts=TEXTS, department_phone="010-55551234"
        )
        images = RouteGroup(
            dicomweb.PREFIX,
            dicomweb.routes(store),
            render_error=dicomweb.render_error,
        )
        groups = [
            route_group(store, settings, "0.1.0"),
            images,
            *server.routes(store, review),
            agreement.route_group(DriftSettings(window=60)),
            reconciliation.route_group(),
            auditing.route_group(),
            registration.route_group(store, frozenset({"keys.test"})),
            *Desk(store, url, server.throttle_of(store, review)).route_groups(),
        ]
        runner = web.AppRunner(make_app(store, HttpSettings(), groups), access_log=None)
        await runner.setup()
        listening.listen(128)
        await web.SockSite(runner, listening).start()
        try:
            yield Node(store, url, settings, [])
        finally:
            await runner.cleanup()


async def add_person(
    store: Store, login: str = LOGIN, role: Role = Role.RADIOLOGIST
) -> people.User:
    """Open an account with the password that every test account has."""
    async with store.db.transaction() as tx:
        return await people.create_user(
            tx,
            login=login,
            password=PASSWORD,
            display=f"{login} 医生",
            roles=[role],
            now=store.clock(),
        )


def _instance(
    case: Case, phantom: Phantom, study: str, number: int, store: Store
) -> Dataset:
    frames = tuple(
        np.roll(phantom.pixels, shift, axis=1) for shift in range(case.frames)
    )
    birth_date = "19790412"
    return build_instance(
        View(
            frames=frames,
            mm_per_pixel=phantom.mm_per_pixel if case.calibrated else None,
        ),
        Patient(
            case.name,
            f"SIM-{case.patient_number:06d}",
            birth_date,
            invalid_id_number(birth_date, case.patient_number),
        ),
        GE_LIKE,
        at=store.clock() - timedelta(days=case.days_ago),
        uids=(study, f"{study}.1", f"{study}.1.1"),
        accession_number=f"SIM2611{number:04d}",
        description="Breast ultrasound",
    )


async def _receive(store: Store, dataset: Dataset) -> None:
    await receive_object(store, dataset, to_part10(dataset))


async def _draft(
    store: Store, case: Case, phantom: Phantom, dataset: Dataset
) -> Report:
    study = str(dataset.StudyInstanceUID)
    report_id = reports.report_id_for(study)
    lesion = _lesion(case, phantom, dataset, report_id)
    uid = heat_map_uid(report_id, 1, lesion.tracking_uid)
    async with store.db.transaction() as tx:
        record = await studies.study(tx, study)
        assert record is not None
        await studies.close_study(tx, study, at=store.clock(), evidence="test")
        sealer = await store.ring.patient(tx, record.patient_id)
        write_overlay(store, sealer, uid, _overlay(phantom))
        return await draft_report(
            store,
            tx,
            study,
            Findings(
                lesions=(lesion,),
                category=case.category,
                not_read=case.not_read,
                heat_maps=(HeatMap(lesion.tracking_uid, uid),),
            ),
            author=ALGORITHM,
            followup=FOLLOWUP_FOR_CATEGORY[case.category],
        )


def _lesion(case: Case, phantom: Phantom, dataset: Dataset, report_id: UUID) -> Lesion:
    truth = case.lesion
    extent = Extent(
        Decimal(f"{truth.width_mm:.1f}"),
        Decimal(f"{truth.width_mm:.1f}"),
        Decimal(f"{truth.height_mm:.1f}"),
    )
    return Lesion(
        tracking_uid=result_uid(report_id, 0, "lesion/1"),
        image=ImageReference(str(dataset.SOPClassUID), str(dataset.SOPInstanceUID)),
        box=_on_screen(phantom.boxes[0], phantom, dataset),
        laterality="L",
        clock=2,
        extent=extent if case.calibrated else None,
        descriptors={
            FieldKey.SHAPE: (truth.shape,),
            FieldKey.ORIENTATION: (truth.orientation,),
            FieldKey.MARGIN: truth.margin,
            FieldKey.ECHO_PATTERN: (truth.echo_pattern,),
            FieldKey.CALCIFICATIONS: truth.calcifications,
        },
        category=case.category,
        probability=Decimal(case.probability),
    )


def _on_screen(box: Sequence[int], phantom: Phantom, dataset: Dataset) -> PixelBox:
    """Return a box of the phantom where the scanner's screen shows it."""
    (region,) = dataset.SequenceOfUltrasoundRegions
    x0, y0 = region.RegionLocationMinX0, region.RegionLocationMinY0
    zoom = (region.RegionLocationMaxX1 - x0 + 1) / phantom.pixels.shape[1]
    left, top, right, bottom = (round(edge * zoom) for edge in box)
    return PixelBox(x0 + left, y0 + top, x0 + right, y0 + bottom)


def _overlay(phantom: Phantom) -> bytes:
    """Return the phantom under a warm spot on its lesion, as the reading paints it."""
    x0, y0, x1, y1 = phantom.boxes[0]
    rows, columns = np.mgrid[: phantom.pixels.shape[0], : phantom.pixels.shape[1]]
    distance = ((columns - (x0 + x1) / 2) / (x1 - x0)) ** 2
    distance = distance + ((rows - (y0 + y1) / 2) / (y1 - y0)) ** 2
    heat = np.exp(-2.2 * distance)[..., None]
    grey = phantom.pixels[..., None].repeat(3, axis=2).astype(float)
    warm = np.concatenate([255 * heat, 210 * heat * (1 - heat) * 2, 90 * (1 - heat)], 2)
    blended = grey * (1 - 0.55 * heat) + warm * 0.55 * heat
    file = BytesIO()
    Image.fromarray(blended.clip(0, 255).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()
