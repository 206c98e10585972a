"""An ultrasound room: worklist, performed procedure step, images, storage commitment.

What a machine does around its images is where nodes and machines misunderstand each
other, so the simulator does all of it, in the order and with the habits of real ones
(their conformance statements): which classes and syntaxes, one association or many,
which PDU size, which character set. Each step is told in plain words; a step that the
node refuses does not keep the room from going on, as it does not keep a sonographer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from pydicom.dataset import Dataset
from pydicom.uid import (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    ModalityPerformedProcedureStep,
    ModalityWorklistInformationFind,
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
    Verification,
)

from dicom_scp.sending.scu import send_at_once
from dicom_scp.simulation.machines import Profile
from dicom_scp.simulation.messages import (
    Scheduled,
    reference_to,
    referenced,
    request_attributes,
    scheduled_by,
    step_begins,
    step_ends,
    worklist_query,
    written,
)
from dicom_scp.simulation.phantoms import PhantomLesion, build_phantom
from dicom_scp.simulation.scanner import Layout, Patient, View, build_instance
from dicom_scp.simulation.scanner_report import build_scanner_report, with_callipers
from node.domain.errors import ErrorKind, NodeError

UidSource = Callable[[], str]
_NATIVE: Final = (str(ExplicitVRLittleEndian), str(ImplicitVRLittleEndian))
_PENDING: Final = (0xFF00, 0xFF01)


@dataclass(frozen=True)
class Step:
    """What one step of the examination came to, in words for a person."""

    name: str
    well: bool
    told: str


@dataclass(frozen=True)
class Node:
    """The node that the room talks to, and who the room says that it is.

    `listen` is the port on which the room waits for the commitment report; None when
    it cannot be called back.
    """

    host: str
    port: int
    ae_title: str = "SONONODE"
    calling_ae: str = "SIMULATOR"
    listen: int | None = None
    patience_s: float = 30.0


@dataclass(frozen=True)
class Examination:
    """What the sonographer does: how many images, of what, and whether she gives up.

    `rows` and `columns` are those of the picture; the screen around it is larger.
    """

    images: int = 3
    rows: int = 600
    columns: int = 760
    cine_frames: int = 0
    lesions: tuple[PhantomLesion, ...] = (PhantomLesion(22, 15, 14, 8),)
    discontinued: bool = False
    seed: int = 11


class Room:
    """One machine with one examination; `run` yields its steps as they happen."""

    def __init__(
        self,
        node: Node,
        profile: Profile,
        *,
        clock: Callable[[], datetime],
        uid: UidSource,
    ) -> None:
        self._node = node
        self._profile = profile
        self._clock = clock
        self._uid = uid
        self._step_uid = ""

    def run(
        self, unscheduled: Patient, examination: Examination | None = None
    ) -> Iterator[Step]:
        """Examine the first woman on the worklist, else `unscheduled`."""
        examination = examination or Examination()
        yield self.verify()
        step, scheduled = self.choose(unscheduled)
        yield step
        if self._profile.steps:
            yield self.begin(scheduled)
        images = list(self.acquire(scheduled, examination))
        step, stored = self.store(images)
        yield step
        if self._profile.steps:
            yield self.end(scheduled, stored, discontinued=examination.discontinued)
        if self._profile.commits and stored:
            yield self.commit(stored)

    def new_uid(self) -> str:
        """Return a UID for something that this room makes."""
        return self._uid()

    def verify(self) -> Step:
        """Ask whether anybody is there (C-ECHO)."""
        with self._association([build_context(Verification)]) as association:
            status = association.send_c_echo()
        return _answered("verification", status, "the node answers")

    def choose(self, unscheduled: Patient) -> tuple[Step, Scheduled]:
        """Take the first scheduled step of this station (PS3.4 K.4)."""
        alone = Scheduled(self.new_uid(), unscheduled, "", "", "", "Breast US")
        try:
            items, status = self._worklist()
        except NodeError as error:
            return Step("worklist", False, error.message), alone
        if status != 0:
            return Step("worklist", False, f"the query ended with {status:04X}"), alone
        if not items:
            return Step("worklist", True, "nobody is scheduled: unscheduled"), alone
        chosen = scheduled_by(items[0], alone)
        told = f"{len(items)} scheduled; takes {chosen.accession_number or 'the first'}"
        return Step("worklist", True, told), chosen

    def begin(self, scheduled: Scheduled) -> Step:
        """Tell that the step has begun (N-CREATE, PS3.4 F.7.2)."""
        self._step_uid = self.new_uid()
        told = step_begins(
            scheduled,
            self._profile.machine,
            self._node.calling_ae,
            self._clock(),
        )
        try:
            with self._association(
                [build_context(ModalityPerformedProcedureStep)]
            ) as a:
                status, _ = a.send_n_create(
                    told, ModalityPerformedProcedureStep, self._step_uid
                )
        except NodeError as error:
            return Step("performed step begins", False, error.message)
        return _answered("performed step begins", status, "IN PROGRESS")

    def acquire(
        self, scheduled: Scheduled, examination: Examination
    ) -> Iterator[Dataset]:
        """Yield the images of the examination, the report of the machine last."""
        at, series = self._clock(), self.new_uid()
        images = []
        for number in range(1, examination.images + 1):
            cine = examination.cine_frames if number == examination.images else 0
            image = self._image(scheduled, examination, series, number, cine, at)
            images.append(image)
            yield image
        if self._profile.measures and images and examination.lesions:
            yield self._report(images[0], examination.lesions[0], at)

    def store(self, instances: Sequence[Dataset]) -> tuple[Step, list[Dataset]]:
        """Send what was acquired; return which instances the node acknowledged."""
        stored: list[Dataset] = []
        refused: set[str] = set()
        groups = [[i] for i in instances] if self._profile.per_image else [instances]
        for group in groups:
            try:
                with self._association(_contexts(group)) as association:
                    for instance in group:
                        if reason := _refusal(association, instance):
                            refused.add(reason)
                        else:
                            stored.append(instance)
            except NodeError as error:
                refused.add(error.message)
        told = f"{len(stored)} of {len(instances)} acknowledged"
        return Step("images", not refused, "; ".join([told, *sorted(refused)])), stored

    def end(
        self, scheduled: Scheduled, stored: Sequence[Dataset], *, discontinued: bool
    ) -> Step:
        """Tell how the step ended and what it made (N-SET, PS3.4 F.7.2)."""
        told = step_ends(stored, self._clock(), discontinued=discontinued)
        name = "performed step ends"
        try:
            with self._association(
                [build_context(ModalityPerformedProcedureStep)]
            ) as a:
                status, _ = a.send_n_set(
                    told, ModalityPerformedProcedureStep, self._step_uid
                )
        except NodeError as error:
            return Step(name, False, error.message)
        return _answered(name, status, str(told.PerformedProcedureStepStatus))

    def commit(self, stored: Sequence[Dataset]) -> Step:
        """Ask the node to answer for the instances, and wait for its report.

        The report comes on an association that the node opens (PS3.4 J.3.3), or on
        this one when it is quick.
        """
        asked = Dataset()
        asked.TransactionUID = self.new_uid()
        asked.ReferencedSOPSequence = [reference_to(instance) for instance in stored]
        reports = _Reports(asked.TransactionUID)
        with reports.listening(self._node):
            try:
                contexts = [build_context(StorageCommitmentPushModel)]
                with self._association(contexts, reports.handlers) as association:
                    status, _ = association.send_n_action(
                        asked,
                        1,
                        StorageCommitmentPushModel,
                        StorageCommitmentPushModelInstance,
                    )
                    answered = _answered("commitment", status, "asked")
                    if not answered.well:
                        return answered
                    patience = 1.0 if self._node.listen else self._node.patience_s
                    reports.wait(patience)
                if self._node.listen:
                    reports.wait(self._node.patience_s)
            except NodeError as error:
                return Step("commitment", False, error.message)
        return reports.told(len(stored), can_be_called=self._node.listen is not None)

    def _worklist(self) -> tuple[list[Dataset], int]:
        contexts = [build_context(ModalityWorklistInformationFind)]
        items, status = [], 0xFE00
        with self._association(contexts) as association:
            query = worklist_query(
                self._node.calling_ae, self._clock(), self._profile.machine
            )
            for answer, item in association.send_c_find(
                query, ModalityWorklistInformationFind
            ):
                status = int(answer.Status) if "Status" in answer else 0xC000
                if status in _PENDING and item is not None:
                    items.append(item)
        return items, status

    def _image(
        self,
        scheduled: Scheduled,
        examination: Examination,
        series: str,
        number: int,
        cine: int,
        at: datetime,
    ) -> Dataset:
        phantom = build_phantom(
            examination.lesions,
            seed=examination.seed + number,
            columns=examination.columns,
            rows=examination.rows,
        )
        width = examination.columns - 2 * cine
        frames = tuple(
            phantom.pixels[:, 2 * n : 2 * n + width] for n in range(cine)
        ) or (phantom.pixels,)
        view = View(
            frames=frames,
            mm_per_pixel=phantom.mm_per_pixel,
            colour=self._profile.machine.layout is Layout.COLUMN,
            transfer_syntax=self._profile.cines if cine else self._profile.stills,
        )
        image = build_instance(
            view,
            written(scheduled.patient, self._profile.machine),
            self._profile.machine,
            at=at,
            uids=(scheduled.study_instance_uid, series, self.new_uid()),
            accession_number=scheduled.accession_number,
            description=scheduled.description,
            instance_number=number,
        )
        if not cine and self._profile.stills == ImplicitVRLittleEndian:
            image.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
        if scheduled.requested_procedure_id:
            image.RequestAttributesSequence = [request_attributes(scheduled)]
        if self._step_uid:
            image.ReferencedPerformedProcedureStepSequence = [
                referenced(ModalityPerformedProcedureStep, self._step_uid)
            ]
        return image

    def _report(self, image: Dataset, lesion: PhantomLesion, at: datetime) -> Dataset:
        """Return what a sonographer's callipers measured in the first image."""
        measured = with_callipers(
            image,
            "Lesion 1",
            centre_mm=(lesion.x_mm, lesion.depth_mm),
            width_mm=lesion.width_mm,
            height_mm=lesion.height_mm,
        )
        return build_scanner_report(
            [image], [measured], at=at, uids=(self.new_uid(), self.new_uid())
        )

    @contextmanager
    def _association(
        self,
        contexts: Sequence[PresentationContext],
        handlers: Sequence[Any] = (),
    ) -> Iterator[Association]:
        node = self._node
        entity = AE(node.calling_ae)
        entity.acse_timeout = entity.dimse_timeout = node.patience_s
        entity.network_timeout = entity.connection_timeout = node.patience_s
        association = entity.associate(
            node.host,
            node.port,
            contexts=list(contexts),
            ae_title=node.ae_title,
            max_pdu=self._profile.max_pdu,
            evt_handlers=[(evt.EVT_CONN_OPEN, send_at_once), *handlers],
        )
        if not association.is_established:
            raise NodeError(_why_not(association, node), ErrorKind.UNAVAILABLE)
        try:
            yield association
        except (RuntimeError, ValueError) as error:
            # pynetdicom's words for a peer that hung up or took no fitting context.
            raise NodeError(
                "the node takes no such request", ErrorKind.UNSUPPORTED
            ) from error
        finally:
            if association.is_established:
                association.release()


class _Reports:
    """The commitment reports of one transaction, from whichever association."""

    def __init__(self, transaction_uid: str) -> None:
        self._transaction = transaction_uid
        self._came = threading.Event()
        self._committed = 0
        self._failed: list[str] = []
        self.handlers = [(evt.EVT_N_EVENT_REPORT, self._take)]

    @contextmanager
    def listening(self, node: Node) -> Iterator[None]:
        """Answer the association that the node opens, where it can."""
        if node.listen is None:
            yield
            return
        entity = AE(node.calling_ae)
        entity.add_supported_context(
            StorageCommitmentPushModel, list(_NATIVE), scu_role=False, scp_role=True
        )
        entity.add_supported_context(Verification)
        server = entity.start_server(
            ("0.0.0.0", node.listen),  # noqa: S104  the node is on another machine
            block=False,
            evt_handlers=[*self.handlers, (evt.EVT_C_ECHO, lambda _: 0x0000)],
        )
        try:
            yield
        finally:
            if server is not None:
                server.shutdown()

    def wait(self, patience_s: float) -> None:
        self._came.wait(patience_s)

    def told(self, asked: int, *, can_be_called: bool) -> Step:
        if not self._came.is_set():
            hint = "" if can_be_called else "; name a port with --listen"
            return Step("commitment", False, f"asked, but no report came{hint}")
        if self._failed:
            reasons = ", ".join(sorted(set(self._failed)))
            told = f"{self._committed} of {asked} committed; {reasons}"
            return Step("commitment", False, told)
        return Step("commitment", True, f"{self._committed} of {asked} committed")

    def _take(self, event: evt.Event) -> tuple[int, None]:
        report = event.event_information
        if str(report.get("TransactionUID", "")) == self._transaction:
            self._committed = len(report.get("ReferencedSOPSequence") or ())
            self._failed = [
                f"{int(item.FailureReason):04X}"
                for item in report.get("FailedSOPSequence") or ()
            ]
            self._came.set()
        return 0x0000, None


def _contexts(instances: Sequence[Dataset]) -> list[PresentationContext]:
    wanted = dict.fromkeys(
        (str(i.SOPClassUID), str(i.file_meta.TransferSyntaxUID)) for i in instances
    )
    return [build_context(*pair) for pair in wanted]


def _refusal(association: Association, instance: Dataset) -> str:
    """Send an instance; return why it was not stored, nothing when it was."""
    try:
        answer = association.send_c_store(instance)
    except ValueError:
        return "the node takes no such class or syntax"
    except RuntimeError:
        return "the node hung up"
    if "Status" not in answer:
        return "no answer"
    status = int(answer.Status)
    return f"{status:04X} {answer.get('ErrorComment', '')}".strip() if status else ""


def _answered(name: str, answer: Any, well: str) -> Step:
    """Return how a request was answered; the status is all that a machine shows."""
    if answer is None or "Status" not in answer:
        return Step(name, False, "no answer")
    status = int(answer.Status)
    if status == 0:
        return Step(name, True, well)
    comment = str(answer.get("ErrorComment", ""))
    return Step(name, False, f"{status:04X} {comment}".strip())


def _why_not(association: Association, node: Node) -> str:
    if association.is_rejected:
        with suppress(AttributeError):
            answer: Any = association.acceptor.primitive
            told = (answer.result, answer.result_source, answer.diagnostic)
            return {
                (1, 1, 3): f"the node does not know the title {node.calling_ae}",
                (1, 1, 7): f"the node does not go by {node.ae_title}",
            }.get(told, f"the node rejects the association {told}")
    if association.is_aborted and association.acceptor.primitive is not None:
        return f"the node offers this service not to {node.calling_ae}"
    return f"nobody answers at {node.host}:{node.port}"
