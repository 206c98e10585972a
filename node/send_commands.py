"""`python -m node send`: studies as they are, a whole ultrasound room, or a load."""

import os
import random
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from uuid import uuid4

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from node.domain.errors import ErrorKind, NodeError
from node.screen import console, errors

if TYPE_CHECKING:
    # The simulator is large; every other command does without it.
    from dicom_scp.simulation.load import Load
    from dicom_scp.simulation.messages import Scheduled
    from dicom_scp.simulation.room import Examination, Node, Room
    from dicom_scp.simulation.simulator import SimulatedStudy

_LOAD_IMAGES = 10
_ROOM_IMAGES = 3


def send(
    sources: Annotated[
        list[Path] | None,
        typer.Argument(help="DICOM files or folders; none = the simulator's studies."),
    ] = None,
    host: str = "127.0.0.1",
    port: int = 11112,
    ae: Annotated[str, typer.Option(help="Called AE title.")] = "SONONODE",
    calling: Annotated[str, typer.Option(help="Calling AE title.")] = "SIMULATOR",
    associations: Annotated[int, typer.Option(min=1, max=64)] = 2,
    machine: Annotated[
        str,
        typer.Option(
            help="A whole room with this machine: worklist, performed step, images,"
            " storage commitment. `list` names them."
        ),
    ] = "",
    images: Annotated[
        int | None, typer.Option(min=1, max=1000, help="Images of a study.")
    ] = None,
    listen: Annotated[
        int | None, typer.Option(help="Port for the commitment report of the node.")
    ] = None,
    discontinue: Annotated[
        bool, typer.Option(help="The examination is given up.")
    ] = False,
    load: Annotated[
        int, typer.Option(min=0, help="Send so many small studies and tell how fast.")
    ] = 0,
) -> None:
    """Send studies over DICOM as an ultrasound machine does."""
    from dicom_scp.simulation.machines import PROFILES
    from dicom_scp.simulation.room import Examination, Node, Room

    if machine == "list":
        _list_machines()
        return
    if machine and machine not in PROFILES:
        known = ", ".join(PROFILES)
        raise NodeError(f"--machine {machine} is none of {known}", ErrorKind.SETTING)
    node = Node(host, port, ae, calling, listen)
    room = Room(
        node,
        PROFILES[machine or "logiq"],
        clock=lambda: datetime.now(UTC),
        uid=new_uid,
    )
    if load:
        done = _load(node, room, load, images or _LOAD_IMAGES, associations)
        raise typer.Exit(1 if done.refused else 0)
    if machine:
        examination = Examination(
            images=images or _ROOM_IMAGES,
            discontinued=discontinue,
            seed=random.randrange(1 << 16),  # noqa: S311  pictures, not secrets
        )
        raise typer.Exit(0 if _examine(room, examination) else 1)
    raise typer.Exit(0 if _send_studies(sources, node, associations) else 1)


def _list_machines() -> None:
    from dicom_scp.simulation.machines import PROFILES

    table = Table(show_header=False, box=None)
    for name, profile in PROFILES.items():
        table.add_row(name, profile.machine.model, profile.words)
    console.print(table)


def new_uid() -> str:
    """Return a UID that nothing else has (PS3.5 B.2)."""
    return f"2.25.{uuid4().int}"


def _examine(room: "Room", examination: "Examination") -> bool:
    """Show the steps of one examination as they happen."""
    from dicom_scp.simulation.simulator import PATIENTS

    well = True
    patient = random.choice(PATIENTS)  # noqa: S311
    for step in room.run(patient, examination):
        sign = "[green]ok  [/]" if step.well else "[red]mend[/]"
        console.print(f"{sign} {step.name}: {step.told}", highlight=False)
        well = well and step.well
    return well


def _load(
    node: "Node", room: "Room", studies: int, images: int, associations: int
) -> "Load":
    from dicom_scp.simulation.load import send_load
    from dicom_scp.simulation.messages import Scheduled
    from dicom_scp.simulation.simulator import invented_patient

    patients = iter(range(1, studies + 2))

    def scheduled() -> "Scheduled":
        patient = invented_patient(next(patients))
        return Scheduled(new_uid(), patient, "", "", "", "Load")

    with Progress(
        TextColumn("load"), BarColumn(), MofNCompleteColumn(), console=console
    ) as progress:
        task = progress.add_task("", total=studies * images)
        done = send_load(
            node,
            room,
            scheduled,
            studies=studies,
            images=images,
            associations=associations,
            progress=lambda: progress.advance(task),
        )
    table = Table(show_header=False, box=None)
    table.add_row("stored", f"{done.stored} in {done.seconds:.1f} s")
    rate = done.stored / done.seconds if done.seconds else 0.0
    megabytes = done.bytes_sent / done.seconds / 1e6 if done.seconds else 0.0
    table.add_row("rate", f"{rate:.0f} instances/s, {megabytes:.1f} MB/s")
    waits = [done.wait_ms(share) for share in (0.5, 0.95, 0.99)]
    told = " / ".join("—" if wait is None else f"{wait:.1f}" for wait in waits)
    table.add_row("answered after", f"{told} ms (50 / 95 / 99 %)")
    for status, count in sorted(done.refused.items()):
        table.add_row("refused", f"{count} x {status}")
    console.print(table)
    return done


def _send_studies(sources: list[Path] | None, node: "Node", associations: int) -> bool:
    from dicom_scp.simulation import simulator

    studies = _studies(sources)
    with Progress(
        TextColumn("C-STORE"), BarColumn(), MofNCompleteColumn(), console=console
    ) as progress:
        task = progress.add_task("", total=sum(len(s.instances) for s in studies))
        answers = simulator.send(
            studies,
            host=node.host,
            port=node.port,
            clock=lambda: datetime.now(UTC),
            called_ae=node.ae_title,
            calling_ae=node.calling_ae,
            associations=associations,
            progress=lambda _: progress.advance(task),
        )
    refused = [answer for answer in answers if not answer.stored]
    for answer in refused:
        status = "no answer" if answer.status is None else f"0x{answer.status:04X}"
        errors.print(f"{answer.sop_instance_uid}: {status}")
    console.print(f"{len(answers) - len(refused)} stored, {len(refused)} not")
    return not refused


def _studies(sources: list[Path] | None) -> "list[SimulatedStudy]":
    from dicom_scp.simulation import simulator

    if not sources:
        samples = os.environ.get("SAMPLES")
        folder = Path(samples) if samples else None
        return simulator.plan_demo(folder, uid=new_uid, now=datetime.now(UTC))
    studies = list(simulator.read_studies(sources))
    if not studies:
        named = ", ".join(map(str, sources))
        raise NodeError(f"{named}: no DICOM file there", ErrorKind.NOT_FOUND)
    return studies
