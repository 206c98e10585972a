"""The conformance statement says what the code does (PS3.2), and the code does it."""

import asyncio
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
from pynetdicom import AE, build_context, build_role, sop_class

from config.settings import load_settings
from dicom_scp.receiving.peers import Peer, Peers, ServiceName
from node.statement import default_tables, implementation, main, parameters, updated
from tests.dicom_scp.conftest import StartScp

STATEMENT = Path(__file__).parents[3] / "docs" / "conformance-statement.md"
DEFAULTS = Path(__file__).parents[3] / "config" / "default.toml"
MOST_CONTEXTS = 128
STRANGE_SYNTAXES = (
    "1.2.840.10008.1.2.4.94",  # JPIP Referenced: no pixels in the object
    "1.2.840.10008.1.2.7.1",  # SMPTE ST 2110: real-time video
    "1.2.840.113619.5.2",  # a maker's own
)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module")
def text() -> str:
    return STATEMENT.read_text(encoding="utf-8")


def rows_of(text: str, name: str) -> list[list[str]]:
    """Return the cells of a table of the statement, without its head."""
    marked = re.search(
        rf"<!-- table {name} -->\n\n(.*?)\n<!-- end -->", text, re.DOTALL
    )
    assert marked is not None
    lines = marked[1].splitlines()[2:]
    return [[c.strip() for c in line.strip("| ").split(" | ")] for line in lines]


def test_the_statement_has_every_table_as_the_code_makes_it(text: str) -> None:
    made = default_tables()
    assert updated(text, made) == text, (
        "run: python -m node.statement --write docs/conformance-statement.md"
    )
    for name, table in made.items():
        assert text.count(f"<!-- table {name} -->\n\n{table}\n<!-- end -->") == 1


def test_the_tables_can_be_printed_and_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    assert main([]) == 0
    printed = capsys.readouterr().out
    assert "Ultrasound Multi-frame Image Storage" in printed
    assert "tries again" in printed
    stale = tmp_path / "statement.md"
    stale.write_text(text.replace("Ultrasound", "Ultrasand"), encoding="utf-8")
    assert main(["--write", str(stale)]) == 0
    assert "Ultrasand" not in "".join(rows_text(stale, "accepted"))


def rows_text(file: Path, name: str) -> Iterable[str]:
    return ("".join(row) for row in rows_of(file.read_text(encoding="utf-8"), name))


def test_every_setting_of_dicom_is_a_parameter() -> None:
    told = {name.strip("`") for name, *_ in parameters(DEFAULTS.read_text("utf-8"))}
    settings = load_settings({})
    for section in ("dicom", "worklist", "query", "completion", "commitment", "pacs"):
        keys = vars(getattr(settings, section))
        assert {f"{section}.{key}" for key in keys} <= told
    for table, entry in (
        ("dicom.peers", "duplicates commitment_reply charset move_to coerce.keyword"),
        ("routing.destinations", "kind schedule parallel commitment"),
        ("routing.rules", "when origin category_at_least stop"),
    ):
        assert {f"{table}.{key}" for key in entry.split()} <= told


# -- an association for every line of it -----------------------------------------------


def printed_contexts(text: str) -> dict[str, list[str]]:
    """Return the transfer syntaxes of every accepted SOP Class, the best first."""
    lists: dict[str, list[tuple[int, str]]] = {}
    for row in rows_of(text, "syntaxes"):
        _, uid, *ranks = row
        for letter, rank in zip("ABCDEFGH", ranks, strict=False):
            if rank:
                lists.setdefault(letter, []).append((int(rank), uid))
    ordered = {letter: [s for _, s in sorted(found)] for letter, found in lists.items()}
    return {
        uid: ordered[told.removeprefix("list ")]
        for _, uid, told, *_ in rows_of(text, "accepted")
        if uid != "–"
    }


def known_classes() -> set[str]:
    """Return every SOP Class that pynetdicom knows of the standard."""
    tables = [
        value
        for name, value in vars(sop_class).items()
        if name.startswith("_")
        and name.endswith("_CLASSES")
        and isinstance(value, dict)
    ]
    found = {uid for table in tables for uid in table.values() if isinstance(uid, str)}
    assert len(found) > 200
    return found


def negotiate(
    port: int, pairs: Sequence[tuple[str, Sequence[str]]], *, both_roles: bool = False
) -> list[tuple[str, str, bool]]:
    """Propose contexts; return what is accepted and whether we may be its SCP."""
    accepted = []
    for start in range(0, len(pairs), MOST_CONTEXTS):
        some = pairs[start : start + MOST_CONTEXTS]
        roles = [build_role(u, scu_role=True, scp_role=True) for u, _ in some]
        association = AE(ae_title="PEER").associate(
            "127.0.0.1",
            port,
            contexts=[build_context(uid, list(syntaxes)) for uid, syntaxes in some],
            ae_title="SONONODE",
            ext_neg=roles if both_roles else [],
        )
        accepted += [
            (str(c.abstract_syntax), str(c.transfer_syntax[0]), bool(c.as_scp))
            for c in association.accepted_contexts
        ]
        if association.is_established:
            association.release()
    return accepted


async def test_what_an_association_accepts_is_what_is_printed(
    start_scp: StartScp, text: str
) -> None:
    node = implementation(load_settings({}))
    peer = Peer("PEER", services=frozenset(ServiceName))
    scp = await start_scp(services=node.services, peers=Peers([peer]))
    printed = printed_contexts(text)
    syntaxes = {s for found in printed.values() for s in found} | {*STRANGE_SYNTAXES}
    proposed = [(uid, [syntax]) for uid in printed for syntax in sorted(syntaxes)]
    proposed += [
        (uid, ["1.2.840.10008.1.2.1"]) for uid in sorted(known_classes() - {*printed})
    ]
    accepted = await asyncio.to_thread(negotiate, scp.ports[0], proposed)
    assert {(uid, syntax) for uid, syntax, _ in accepted} == {
        (uid, syntax) for uid, found in printed.items() for syntax in found
    }

    backwards = [(uid, found[::-1]) for uid, found in printed.items()]
    best = await asyncio.to_thread(negotiate, scp.ports[0], backwards, both_roles=True)
    assert {uid: syntax for uid, syntax, _ in best} == {
        uid: found[0] for uid, found in printed.items()
    }
    roles = {uid: "SCU" in role for _, uid, _, role, _ in rows_of(text, "accepted")}
    del roles["–"]
    assert {uid: as_scp for uid, _, as_scp in best} == roles


async def test_a_peer_is_offered_the_contexts_of_its_services_alone(
    start_scp: StartScp, text: str
) -> None:
    node = implementation(load_settings({}))
    rows = rows_of(text, "accepted")
    printed = printed_contexts(text)
    for service in ServiceName:
        peer = Peer("PEER", services=frozenset({service}))
        scp = await start_scp(services=node.services, peers=Peers([peer]))
        proposed = [(uid, found[:1]) for uid, found in printed.items()]
        accepted = await asyncio.to_thread(negotiate, scp.ports[0], proposed)
        told = {uid for _, uid, _, _, of in rows if of.split()[0] in ("any", service)}
        assert {uid for uid, *_ in accepted} == told - {"–"}
