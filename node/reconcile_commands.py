"""`python -m node reconcile`: studies and orders that do not fit, without the page.

Patients are named by their numbers only, as a shell keeps what it shows.
"""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer
from rich.table import Column, Table

from node.command import read_settings, with_store
from node.domain.errors import ErrorKind, NodeError
from node.screen import console

if TYPE_CHECKING:
    from node.domain.access import Identity
    from node.domain.study import PatientIdentity
    from node.store.store import Store
    from node.workflow.merging import BothRows
    from node.workflow.reconciliation import Comparison

cli = typer.Typer(help="Studies without their order, or of the wrong patient.")

_Study = Annotated[str, typer.Argument(metavar="STUDY", help="Study Instance UID.")]
_Order = Annotated[UUID, typer.Argument(metavar="ORDER")]
_Reason = Annotated[str, typer.Option(help="Why; kept sealed, and for ever.")]
_Issuer = Annotated[str, typer.Option(help="Of the first, where two have it.")]
_IssuerThatStands = Annotated[str, typer.Option(help="Of the second, likewise.")]
_Yes = Annotated[bool, typer.Option("--yes", help="Ask nothing: it was compared.")]


@cli.command("list")
def list_studies() -> None:
    """List the studies that wait for somebody to compare them with their orders."""
    from node.workflow.reconciliation import read_unreconciled

    found = with_store(
        read_settings(), lambda store: read_unreconciled(store, _operator(), limit=200)
    )
    table = Table(Column("study", no_wrap=True), "date", "patient", "accession", "why")
    for one in found.studies:
        table.add_row(
            one.study_instance_uid,
            str(one.study_date or ""),
            one.patient.patient_id,
            one.accession_number,
            "" if one.why is None else one.why.value,
        )
    console.print(table)
    for pair in found.patients:
        numbers = " and ".join(
            f"{who.patient_id} ({who.issuer or 'no issuer'})" for who in pair.identities
        )
        shared = ", ".join(pair.shared)
        console.print(f"perhaps one woman: {numbers}; same {shared}", highlight=False)


@cli.command("show")
def show(study: _Study) -> None:
    """Show a study beside the orders that it may answer."""
    _print(with_store(read_settings(), lambda store: _compared(store, study)))


@cli.command("link")
def link(study: _Study, order: _Order, reason: _Reason, yes: _Yes = False) -> None:
    """Say that a study answers an order of the same patient."""
    from node.workflow.reconciliation import link_order

    _of_order(link_order, study, order, reason, yes)
    console.print(f"{study}: answers {order}", highlight=False)


@cli.command("unlink")
def unlink(study: _Study, order: _Order, reason: _Reason, yes: _Yes = False) -> None:
    """Say that a study does not answer an order, whatever its headers name."""
    from node.workflow.reconciliation import unlink_order

    _of_order(unlink_order, study, order, reason, yes)
    console.print(f"{study}: does not answer {order}", highlight=False)


def _of_order(
    say: Callable[..., Awaitable[None]], study: str, order: UUID, reason: str, yes: bool
) -> None:
    async def act(store: "Store", seen: str) -> None:
        await say(store, study, order, identity=_operator(), reason=reason, seen=seen)

    _confirmed(study, act, yes)


@cli.command("move")
def move(
    study: _Study,
    patient: Annotated[str, typer.Argument(metavar="PATIENT-ID")],
    reason: _Reason,
    issuer: Annotated[str, typer.Option(help="Where two have this number.")] = "",
    yes: _Yes = False,
) -> None:
    """File a study anew under the patient whose images they are."""
    from node.workflow.moving import move_study, seen_patient

    filed = []

    async def act(store: "Store", seen: str) -> None:
        patient_id, identity = await _the_one(store, patient, issuer)
        done = await move_study(
            store,
            study,
            patient_id,
            identity=_operator(),
            reason=reason,
            seen=seen,
            seen_target=seen_patient(patient_id, identity),
        )
        filed.append(done.filed_as)

    _confirmed(study, act, yes)
    console.print(f"{study}: void, filed anew as {filed[0]}", highlight=False)


@cli.command("merge")
def merge(
    gone: Annotated[str, typer.Argument(metavar="PATIENT-ID")],
    stays: Annotated[str, typer.Argument(metavar="PATIENT-ID-THAT-STANDS")],
    reason: _Reason,
    issuer: _Issuer = "",
    issuer_that_stands: _IssuerThatStands = "",
    yes: _Yes = False,
) -> None:
    """Say that two rows are one woman, for whom the second stands from now on."""
    from node.workflow.merging import merge_rows

    numbers = ((gone, issuer), (stays, issuer_that_stands))
    lost, kept = _both_confirmed(numbers, merge_rows, reason, yes)
    console.print(f"{lost}: one woman with {kept}", highlight=False)


@cli.command("unmerge")
def unmerge(
    gone: Annotated[str, typer.Argument(metavar="PATIENT-ID")],
    stays: Annotated[str, typer.Argument(metavar="PATIENT-ID-THAT-STANDS")],
    reason: _Reason,
    issuer: _Issuer = "",
    issuer_that_stands: _IssuerThatStands = "",
    yes: _Yes = False,
) -> None:
    """Say that the two rows of a merge are two women: each stands for itself again."""
    from node.workflow.merging import take_apart

    numbers = ((gone, issuer), (stays, issuer_that_stands))
    lost, kept = _both_confirmed(numbers, take_apart, reason, yes)
    console.print(f"{lost}: apart from {kept}", highlight=False)


@cli.command("different")
def different(
    one: Annotated[str, typer.Argument(metavar="PATIENT-ID")],
    other: Annotated[str, typer.Argument(metavar="PATIENT-ID")],
    reason: _Reason,
    issuer: _Issuer = "",
    issuer_that_stands: _IssuerThatStands = "",
    yes: _Yes = False,
) -> None:
    """Say that two rows are two women: they are never suggested as one again."""
    from node.workflow.merging import keep_apart

    numbers = ((one, issuer), (other, issuer_that_stands))
    told = _both_confirmed(numbers, keep_apart, reason, yes)
    console.print(f"{told[0]} and {told[1]}: two women", highlight=False)


def _both_confirmed(
    numbers: tuple[tuple[str, str], tuple[str, str]],
    act: Callable[..., Awaitable[None]],
    reason: str,
    yes: bool,
) -> tuple[UUID, UUID]:
    """Show two rows, ask, and act on exactly what was shown; return their ids."""
    from node.workflow.merging import compare_rows

    async def look(store: "Store") -> tuple[UUID, UUID, "BothRows"]:
        lost, kept = [
            (await _the_one(store, *told, called=called))[0]
            for told, called in zip(numbers, ("the first", "the second"), strict=True)
        ]
        async with store.db.transaction() as tx:
            return lost, kept, await compare_rows(store, tx, lost, kept)

    settings = read_settings()
    lost, kept, shown = with_store(settings, look)
    for row in (shown.one, shown.other):
        console.print(
            f"patient {row.identity.patient_id} ({row.identity.issuer or 'no issuer'}):"
            f" {row.studies} studies, {row.patient_id}",
            highlight=False,
            soft_wrap=True,
        )
    console.print(
        f"different: {', '.join(shown.differs) or 'nothing'}", highlight=False
    )
    if not yes:
        typer.confirm("Is this what you mean?", abort=True)

    async def do(store: "Store") -> None:
        await act(
            store, lost, kept, identity=_operator(), reason=reason, seen=shown.seen
        )

    with_store(settings, do)
    return lost, kept


async def _the_one(
    store: "Store", number: str, issuer: str, *, called: str = "this"
) -> "tuple[UUID, PatientIdentity]":
    """Return the one patient with a number, of any issuer unless one is given."""
    from node.workflow.moving import find_patients

    found = await find_patients(store, _operator(), number)
    right = [one for one in found if not issuer or one[1].issuer == issuer]
    if len(right) != 1:
        told = "several patients have" if right else "nobody has"
        raise NodeError(f"{told} {called} number", ErrorKind.NOT_FOUND)
    return right[0]


def _confirmed(
    study: str, act: Callable[["Store", str], Awaitable[None]], yes: bool
) -> None:
    """Show both sides, ask, and act on exactly what was shown."""
    settings = read_settings()
    shown = with_store(settings, lambda store: _compared(store, study))
    _print(shown)
    if not yes:
        typer.confirm("Is this what you mean?", abort=True)

    async def do(store: "Store") -> None:
        await act(store, shown.seen)

    with_store(settings, do)


async def _compared(store: "Store", study: str) -> "Comparison":
    from node.workflow.reconciliation import compare

    async with store.db.transaction() as tx:
        return await compare(store, tx, study)


def _print(shown: "Comparison") -> None:
    why = "" if shown.why is None else shown.why.value
    console.print(
        f"study {shown.study.study_instance_uid}: patient {shown.patient.patient_id},"
        f" accession {shown.accession_number or '-'},"
        f" report {shown.report_status or '-'} {why}",
        highlight=False,
        soft_wrap=True,
    )
    if shown.filed_as:
        console.print(f"void: filed anew as {shown.filed_as}", highlight=False)
    table = Table(
        Column("order", no_wrap=True), "patient", "accession", "status", "linked", ""
    )
    for one in shown.candidates:
        order = one.listed.order
        table.add_row(
            str(order.order_id),
            one.listed.identity.patient_id,
            order.step.accession_number,
            order.status.value,
            "yes" if one.linked else "",
            one.refused,
        )
    console.print(table)


def _operator() -> "Identity":
    from node.administration import ADMINISTRATOR
    from node.domain.access import Identity, Role

    return Identity(ADMINISTRATOR, frozenset({Role.ADMINISTRATOR}), "Administrator")
