"""`python -m node`: the command line of the node."""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from config.settings import SettingsError
from node import (
    audit_commands,
    client_commands,
    deliveries,
    doctor_commands,
    models_commands,
    order_commands,
    reconcile_commands,
    send_commands,
    subscription_commands,
)
from node.command import read_settings, with_store
from node.domain.access import Role
from node.domain.consent import ConsentScope
from node.domain.errors import ErrorKind, NodeError
from node.screen import console, errors

EXIT_SETTINGS = 2
T = TypeVar("T")

cli = typer.Typer(
    help="sononode: a DICOM-native integration node for breast ultrasound.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
users = typer.Typer(help="Accounts of people and machines.", no_args_is_help=True)
keys = typer.Typer(help="The keys of all stored data.", no_args_is_help=True)
consent = typer.Typer(help="What patients agree to.", no_args_is_help=True)
export = typer.Typer(help="Data that leave the node.", no_args_is_help=True)
versions = typer.Typer(
    help="Other content that came under a known SOP Instance UID.",
    no_args_is_help=True,
)
cli.add_typer(users, name="user")
cli.add_typer(keys, name="keys")
cli.add_typer(audit_commands.cli, name="audit")
cli.add_typer(models_commands.cli, name="models")
cli.add_typer(doctor_commands.cli, name="doctor")
cli.add_typer(deliveries.cli, name="deliveries")
cli.command("subscriptions")(subscription_commands.list_subscriptions)
cli.command("hook-secret")(subscription_commands.change_secret)
cli.add_typer(order_commands.cli, name="order")
cli.add_typer(reconcile_commands.cli, name="reconcile")
cli.add_typer(client_commands.cli, name="client")
cli.add_typer(consent, name="consent")
cli.add_typer(export, name="export")
cli.add_typer(versions, name="versions")


class ServeRole(StrEnum):
    """What one process does; `all` supervises one process of each."""

    ALL = "all"
    SCP = "scp"
    WEB = "web"
    WORKER = "worker"
    INFERENCE = "inference"
    RELAY = "relay"


@cli.command()
def serve(
    role: Annotated[ServeRole, typer.Option(help="Which part to run.")] = ServeRole.ALL,
) -> None:
    """Run the node, or one role of it, until SIGTERM."""
    settings = read_settings()
    if role is ServeRole.ALL:
        from node.installation import serve_all

        raise typer.Exit(serve_all(settings, announce=errors.print))
    from node.app import ROLES

    if not settings.database.url and role is not ServeRole.RELAY:
        raise NodeError(
            "database.url: a single role needs the PostgreSQL of its node",
            ErrorKind.SETTING,
        )
    ROLES[role.value](settings)


@cli.command()
def demo(
    once: Annotated[bool, typer.Option("--once", help="End after the table.")] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the table there too.")
    ] = None,
) -> None:
    """Start a node, send studies through it and show what came out."""
    from node.demo import demonstrate

    raise typer.Exit(demonstrate(os.environ, console, once=once, json_file=json_file))


cli.command()(send_commands.send)


@cli.command()
def samples(
    folder: Annotated[Path | None, typer.Argument(help="Where to put them.")] = None,
) -> None:
    """Download the BrEaST images from their publisher, with checksum and licence."""
    from dicom_scp.simulation.samples import download

    target = folder or read_settings().data / "samples"
    with Progress(console=console) as progress:
        task = progress.add_task("BrEaST", total=None)
        download(
            target,
            progress=lambda done, total: progress.update(
                task, completed=done, total=total
            ),
        )
    console.print(f"{target}: use it with SAMPLES={target} make demo")


@cli.command()
def migrate() -> None:
    """Bring the database to the schema of this version."""
    from node.installation import attached, migrate_database

    dsn = attached(read_settings()).database.url
    applied = asyncio.run(migrate_database(dsn))
    console.print("\n".join(applied) or "the schema is up to date")


@users.command("add")
def add_user(
    login: str,
    role: Annotated[list[Role], typer.Option(help="May be given several times.")],
    display: Annotated[
        str, typer.Option(help="Name as reports show it: Li^Ming=李^明.")
    ] = "",
    password: Annotated[
        str,
        typer.Option(prompt=True, hide_input=True, confirmation_prompt=True),
    ] = "",
) -> None:
    """Make an account."""
    from node import administration

    _with_store(
        lambda store: administration.add_user(
            store, login, password, role, display or login
        )
    )
    console.print(f"{login}: {', '.join(r.value for r in role)}")


@users.command("disable")
def disable_user(login: str) -> None:
    """Shut an account and end its sessions."""
    from node import administration

    _with_store(lambda store: administration.disable_user(store, login))
    console.print(f"{login}: disabled")


@users.command("link")
def link_user(login: str, subject: str) -> None:
    """Let somebody of the hospital's sign-on (its `sub`) use an account of the node."""
    from node import administration

    issuer = read_settings().auth.oidc.issuer
    if not issuer:
        raise NodeError("auth.oidc.issuer: is not set", ErrorKind.SETTING)
    _with_store(lambda store: administration.link_user(store, login, issuer, subject))
    console.print(f"{login}: linked")


@users.command("list")
def list_users() -> None:
    """List the accounts."""
    from node import administration

    table = Table("login", "roles", "state")
    for row in _with_store(lambda store: administration.user_rows(store)):
        table.add_row(*row)
    console.print(table)


@keys.command("init")
def init_keys() -> None:
    """Make the keys that are missing here. Keep a copy away from this machine."""
    from node.installation import make_secrets

    made = make_secrets(read_settings())
    for path in made:
        console.print(f"{path}: made. Keep a copy: without it data are lost.")
    if not made:
        console.print("every key is there already; none was changed")


@keys.command("rotate")
def rotate_keys() -> None:
    """Make new root and domain keys and wrap every key anew."""
    from node import administration

    count = _with_store(administration.rotate_keys)
    console.print(f"{count} keys wrapped anew")


@keys.command("verify")
def verify_keys() -> None:
    """Open every key once."""
    from node import administration

    count = _with_store(lambda store: administration.verify_keys(store))
    console.print(f"{count} keys open")


@keys.command("shred")
def shred_keys(
    study: Annotated[str, typer.Argument(help="A Study Instance UID of the patient.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Erase a patient everywhere, backups included, by destroying her key."""
    from node import administration

    if not yes:
        others = _with_store(lambda store: administration.merged_rows(store, study))
        too = f", with {others} rows that are merged with hers" if others else ""
        typer.confirm(
            f"Everything of this patient becomes unreadable{too}. Go on?", abort=True
        )
    _with_store(lambda store: administration.shred_patient(store, study))
    console.print("the patient's key is destroyed")


@versions.command("list")
def list_versions() -> None:
    """List the versions kept beside the ones that are served."""
    from node import administration

    table = Table("SOP Instance UID", "version", "study", "from", "received", "bytes")
    for one in _with_store(administration.kept_versions):
        table.add_row(
            one.sop_instance_uid,
            str(one.number),
            one.study_instance_uid,
            one.calling_ae,
            f"{one.received_at:%Y-%m-%d %H:%M}",
            str(one.size),
        )
    console.print(table if table.row_count else "no other version is kept")


@versions.command("get")
def get_version(
    sop_instance_uid: str,
    number: Annotated[int, typer.Argument(min=2, help="As `versions list` has it.")],
    target: Annotated[Path, typer.Option("--to", help="A file that is not there.")],
) -> None:
    """Write a kept version to a DICOM file, readable and with the patient's name."""
    from node import administration

    size = _with_store(
        lambda store: administration.write_version(
            store, sop_instance_uid, number, target
        )
    )
    console.print(f"{target}: {size} bytes. It names the patient.")


OfPatient = Annotated[
    str, typer.Argument(metavar="STUDY", help="A Study Instance UID of the patient.")
]
Scope = Annotated[ConsentScope, typer.Option(help="What she agrees to.")]


@consent.command("give")
def give_consent(study: OfPatient, scope: Scope = ConsentScope.RESEARCH) -> None:
    """Record that a patient agrees. Without it nothing of hers is exported."""
    from node.administration import ADMINISTRATOR
    from node.workflow.consent import give_consent as give

    _with_store(lambda store: give(store, study, scope, by=ADMINISTRATOR))
    console.print(f"consent to {scope.value} recorded")


@consent.command("withdraw")
def withdraw_consent(study: OfPatient, scope: Scope = ConsentScope.RESEARCH) -> None:
    """Record that a patient no longer agrees. Earlier exports stay where they are."""
    from node.administration import ADMINISTRATOR
    from node.workflow.consent import withdraw_consent as withdraw

    _with_store(lambda store: withdraw(store, study, scope, by=ADMINISTRATOR))
    console.print(f"consent to {scope.value} withdrawn")


@consent.command("show")
def show_consents(study: OfPatient) -> None:
    """Show what a patient agreed to, and when she withdrew it."""
    from node.workflow.consent import show_consents as show

    table = Table("scope", "given", "withdrawn")
    for one in _with_store(lambda store: show(store, study)):
        given = f"{one.given_at:%Y-%m-%d %H:%M} {one.given_by}"
        withdrawn = (
            f"{one.withdrawn_at:%Y-%m-%d %H:%M} {one.withdrawn_by}"
            if one.withdrawn_at
            else ""
        )
        table.add_row(one.scope.value, given, withdrawn)
    console.print(table if table.row_count else "no consent recorded")


@export.command("training")
def export_training(
    target: Annotated[Path, typer.Option("--to", help="Gets site/manifest.csv.")],
    since: Annotated[
        datetime | None,
        typer.Option(formats=["%Y-%m-%d"], help="Only what was signed since then."),
    ] = None,
    dicom: Annotated[
        bool, typer.Option("--dicom", help="Also de-identified DICOM objects.")
    ] = False,
    whole_frames: Annotated[
        bool,
        typer.Option(help="Also images without a region; look at their margins."),
    ] = False,
) -> None:
    """Write signed images of consenting patients, de-identified, for training."""
    from dicom_scp.export.training import export_training as write
    from node.administration import ADMINISTRATOR

    with Progress(
        TextColumn("reports"), BarColumn(), MofNCompleteColumn(), console=console
    ) as progress:
        task = progress.add_task("", total=None)
        done = _with_store(
            lambda store: write(
                store,
                target,
                since=since.date() if since else None,
                by=ADMINISTRATOR,
                dicom=dicom,
                whole_frames=whole_frames,
                progress=lambda ready, total: progress.update(
                    task, completed=ready, total=total
                ),
            )
        )
    for reason, count in sorted(done.left_out.items()):
        console.print(f"left out: {count} x {reason}")
    console.print(
        f"{done.images} images of {len(done.patients)} patients,"
        f" {done.lines_of_text} lines of text blacked out;"
        " look at the pictures before you give them away"
    )


def _with_store(work: Callable[[Any], Awaitable[T]]) -> T:
    return with_store(read_settings(), work)


def main() -> None:
    """Run the command line; a known fault is one line and exit status 2."""
    try:
        cli()
    except SettingsError as error:
        for fault in error.faults:
            errors.print(fault, style="red", highlight=False)
        sys.exit(EXIT_SETTINGS)
    except NodeError as error:
        errors.print(error.message, style="red", highlight=False)
        sys.exit(EXIT_SETTINGS if error.kind is ErrorKind.SETTING else 1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
