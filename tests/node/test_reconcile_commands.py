"""Reconciling by hand: `python -m node reconcile`."""

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
from typer import Typer

from node.command import read_settings, with_store
from node.domain.errors import NodeError
from node.reconcile_commands import cli
from node.store.store import Store
from node.workflow.orders import match_study
from tests.node.conftest import Run
from tests.node.workflow.test_orders import OTHER, STEP, placed, received

STUDY = "2.25.77"


@pytest.fixture
def run(installed: Callable[[Typer], Run]) -> Run:
    """Return the command on an installation with one study of a mistyped number."""

    async def fill(store: Store) -> None:
        await placed(store)
        await placed(
            store, identity=OTHER, key="2", step=replace(STEP, accession_number="ACC-2")
        )
        await received(store, accession="ACC-9")
        async with store.db.transaction() as tx:
            await tx.execute("update studies set status = 'read'")
            await match_study(store, tx, STUDY)

    with_store(read_settings(), fill)
    return installed(cli)


def test_a_study_is_listed_shown_and_linked_after_a_look(run: Run) -> None:
    listed = run("list").stdout
    for told in (STUDY, "MRN-0042", "ACC-9", "unknown-accession"):
        assert told in listed
    assert "Zhang" not in listed
    order = re.findall(r"[0-9a-f]{8}-[0-9a-f-]{27}", run("show", STUDY).stdout)[0]
    told = ("link", STUDY, order, "--reason", "mistyped")
    assert run(*told, input="n\n").exit_code == 1
    assert STUDY in run("list").stdout
    done = run(*told, input="y\n")
    assert f"answers {order}" in done.stdout, done.output
    assert STUDY not in run("list").stdout
    back = run("unlink", STUDY, order, "--reason", "no", "--yes")
    assert f"does not answer {order}" in back.stdout
    assert STUDY in run("list").stdout


def test_a_study_is_filed_anew_under_another_number(run: Run) -> None:
    nobody = run("move", STUDY, "MRN-0", "--reason", "wrong entry", "--yes")
    assert isinstance(nobody.exception, NodeError)
    assert str(nobody.exception) == "nobody has this number"
    done = run("move", STUDY, OTHER.patient_id, "--reason", "wrong entry", "--yes")
    assert "void, filed anew as 2.25." in done.stdout, done.output
    assert "void" in run("show", STUDY).stdout


def test_two_rows_are_merged_and_taken_apart_after_a_look(run: Run) -> None:
    both = ("MRN-0042", OTHER.patient_id, "--reason", "same ID card")
    refused = run("merge", *both, input="n\n")
    assert refused.exit_code == 1
    assert "different: patient_id, name, birth_date" in refused.stdout
    assert "one woman with" in run("merge", *both, "--yes").stdout
    assert "apart from" in run("unmerge", *both, "--yes").stdout
    assert "two women" in run("different", *both, "--yes").stdout
    assert "perhaps one woman" not in run("list").stdout
