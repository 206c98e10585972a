"""Load: many small studies at once, to see what a node and its network can take."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

from pydicom.dataset import Dataset
from pynetdicom import AE, evt

from dicom_scp.sending.scu import send_at_once
from dicom_scp.simulation.messages import Scheduled
from dicom_scp.simulation.room import Examination, Node, Room
from node.domain.errors import ErrorKind, NodeError

NO_ANSWER = "no answer"


@dataclass
class Load:
    """What a load came to. `waits_s`: how long each answer was waited for."""

    stored: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    bytes_sent: int = 0
    waits_s: list[float] = field(default_factory=list)

    def wait_ms(self, share: float) -> float | None:
        """Return the wait that `share` of the answers stayed below, in ms."""
        if not self.waits_s:
            return None
        ordered = sorted(self.waits_s)
        return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def send_load(
    node: Node,
    room: Room,
    scheduled: Callable[[], Scheduled],
    *,
    studies: int,
    images: int,
    associations: int,
    progress: Callable[[], None],
) -> Load:
    """Send `studies` studies of `images` images each; return what became of them.

    One picture is drawn and goes out under ever new UIDs; a study keeps to one
    association. Raises NodeError UNAVAILABLE when nothing at all got through.
    """
    (template,) = room.acquire(scheduled(), Examination(images=1, lesions=()))
    waiting: SimpleQueue[Scheduled] = SimpleQueue()
    for _ in range(studies):
        waiting.put(scheduled())
    load, lock = Load(), threading.Lock()

    def work() -> None:
        with suppress(Empty):
            while True:
                _send_study(node, room, template, waiting.get_nowait(), images, note)

    def note(status: str, size: int, waited_s: float) -> None:
        with lock:
            if status == "0000":
                load.stored += 1
                load.bytes_sent += size
                load.waits_s.append(waited_s)
            else:
                load.refused[status] += 1
        progress()

    started = time.monotonic()
    threads = [threading.Thread(target=work, daemon=True) for _ in range(associations)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    load.seconds = time.monotonic() - started
    if not load.stored and set(load.refused) == {NO_ANSWER}:
        raise NodeError(
            f"nobody answers at {node.host}:{node.port}", ErrorKind.UNAVAILABLE
        )
    return load


def _send_study(
    node: Node,
    room: Room,
    template: Dataset,
    scheduled: Scheduled,
    images: int,
    note: Callable[[str, int, float], None],
) -> None:
    entity = AE(node.calling_ae)
    entity.acse_timeout = entity.dimse_timeout = node.patience_s
    entity.add_requested_context(
        template.SOPClassUID, template.file_meta.TransferSyntaxUID
    )
    association = entity.associate(
        node.host,
        node.port,
        ae_title=node.ae_title,
        max_pdu=131_072,
        evt_handlers=[(evt.EVT_CONN_OPEN, send_at_once)],
    )
    for instance in _copies(template, scheduled, room, images):
        started, status = time.monotonic(), NO_ANSWER
        if association.is_established:
            with suppress(RuntimeError, ValueError):
                answer = association.send_c_store(instance)
                if "Status" in answer:
                    status = f"{int(answer.Status):04X}"
        note(status, len(instance.PixelData), time.monotonic() - started)
    if association.is_established:
        association.release()


def _copies(
    template: Dataset, scheduled: Scheduled, room: Room, images: int
) -> Iterator[Dataset]:
    series = room.new_uid()
    for number in range(1, images + 1):
        instance = copy(template)
        instance.StudyInstanceUID = scheduled.study_instance_uid
        instance.SeriesInstanceUID = series
        instance.SOPInstanceUID = room.new_uid()
        instance.PatientID = scheduled.patient.patient_id
        instance.PatientName = scheduled.patient.name
        instance.InstanceNumber = number
        yield instance
