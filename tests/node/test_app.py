"""What the parts of a node are told, as the settings say it."""

import json
import re
from pathlib import Path

from aiohttp import ClientSession, web
from aiohttp.test_utils import TestClient, TestServer

from config.settings import Settings, load_settings
from dicom_scp.receiving.peers import ServiceName
from dicom_scp.receiving.tls import WrapsSockets
from fhir.content.concepts import IDENTIFIER_TYPE
from fhir.content.reading import read_patient
from node.app import commitment_worker, route_groups_of
from node.domain.access import Role
from node.domain.scopes import Scopes, read_scopes
from node.domain.study import PatientIdentity
from node.http import HttpSettings, make_app
from node.outbound import outbound_of
from node.parts import fhir_settings_of, machines_of, peers_of, services_of
from node.store import clients, identities
from node.store.commitments import Reference
from node.store.store import Store
from node.workflow.commitment import LANE, REPORT_COMMITMENT, receive_request
from tests.fhir.smart_rig import jwks

PACS = {
    "SONONODE_PACS__AE_TITLE": "PACS",
    "SONONODE_PACS__HOST": "10.1.2.3",
    "SONONODE_PACS__COMMITMENT": "true",
}
MACHINES = [
    {"ae_title": "LOGIQ_1", "host": "10.1.2.15", "commitment_reply": "same"},
    {"ae_title": "LOGIQ_2"},
]


def make_settings(folder: Path, **changes: str) -> Settings:
    return load_settings({"SONONODE_DATA": str(folder), **changes})


def test_an_archive_that_is_asked_to_commit_itself_may_call_to_report(
    tmp_path: Path,
) -> None:
    machines = {"SONONODE_DICOM__PEERS": json.dumps(MACHINES)}
    archive = peers_of(make_settings(tmp_path, **PACS, **machines)).caller("PACS")
    assert archive is not None
    assert archive.services == {ServiceName.COMMITMENT}
    unasked = {**PACS, **machines, "SONONODE_PACS__COMMITMENT": "false"}
    assert peers_of(make_settings(tmp_path, **unasked)).caller("PACS") is None


async def test_a_patient_of_the_ehr_is_that_of_the_machines_where_the_system_is_told(
    store: Store, tmp_path: Path
) -> None:
    hospital = "urn:oid:1.2.156.10"
    settings = make_settings(
        tmp_path,
        SONONODE_FHIR__PATIENT_ID_SYSTEM=hospital,
        SONONODE_RELAY__ENABLED="false",
    )
    kind = {"coding": [{"system": IDENTIFIER_TYPE, "code": "MR"}]}
    patient = {
        "resourceType": "Patient",
        "identifier": [{"type": kind, "system": hospital, "value": "P-1"}],
        "name": [{"text": "王芳"}],
    }
    from_ehr = read_patient(patient, fhir_settings_of(settings).systems)
    from_machine = PatientIdentity("P-1", "Wang^Fang=王^芳")
    async with store.db.transaction() as tx:
        ids = {
            await identities.upsert_patient(tx, store, identity, at=store.clock())
            for identity in (from_machine, from_ehr)
        }
    assert len(ids) == 1


def test_an_archive_that_may_report_does_not_shut_an_open_door(tmp_path: Path) -> None:
    peers = peers_of(make_settings(tmp_path, **PACS))
    assert peers.open_door
    assert peers.caller("ANY_MACHINE") is not None


def test_an_archive_that_is_a_peer_keeps_what_the_site_gave_it(tmp_path: Path) -> None:
    entered = [{"ae_title": "PACS", "addresses": ["10.1.2.0/24"]}]
    peers = {"SONONODE_DICOM__PEERS": json.dumps(entered)}
    archive = peers_of(make_settings(tmp_path, **PACS, **peers)).caller("PACS")
    assert archive is not None
    assert not archive.calls_from("10.9.9.9")
    assert ServiceName.STORE in archive.services


def test_only_machines_with_a_host_are_told_what_is_kept(tmp_path: Path) -> None:
    settings = make_settings(
        tmp_path,
        SONONODE_DICOM__PEERS=json.dumps(MACHINES),
        SONONODE_DICOM__AE_TITLE="NODE",
    )
    (machine,) = machines_of(settings).values()
    assert (machine.ae_title, machine.host) == ("LOGIQ_1", "10.1.2.15")
    assert (machine.port, machine.calling_ae_title) == (104, "NODE")
    asked = {peer.ae_title: peer.commitment_reply for peer in peers_of(settings)}
    assert asked == {"LOGIQ_1": "same", "LOGIQ_2": "new"}


def test_the_node_offers_storage_commitment(tmp_path: Path) -> None:
    names = [service.name for service in services_of(make_settings(tmp_path))]
    assert ServiceName.COMMITMENT in names


async def test_a_machine_whose_host_was_taken_away_is_named_while_its_report_waits(
    store: Store, tmp_path: Path
) -> None:
    settings = make_settings(tmp_path)
    worker = commitment_worker(store, settings, outbound_of(settings, no_tls))
    await receive_request(
        store,
        calling_ae="LOGIQ_9",
        transaction_uid="2.25.9",
        references=[Reference("1.2.3", "2.25.1")],
    )
    job = await store.jobs.claim([REPORT_COMMITMENT], "w1", lane=LANE)
    assert job is not None
    await worker._carry_out(job)
    async with store.db.transaction() as tx:
        (row,) = await tx.fetch("select state, error from jobs")
    assert row["state"] == "ready"  # a host may be set within three days
    assert row["error"] == "dicom.peers: no host is set for LOGIQ_9"


def no_tls() -> WrapsSockets:
    raise AssertionError("nothing here is reached over TLS")


async def test_a_token_comes_in_where_its_scopes_can_be_held_and_nowhere_else(
    store: Store, tmp_path: Path
) -> None:
    settings = make_settings(tmp_path, SONONODE_RELAY__ENABLED="false")
    async with ClientSession() as session:
        groups = route_groups_of(store, settings, session)
        app = make_app(store, HttpSettings(), groups)
        async with store.db.transaction() as tx:
            client = await clients.register(
                tx,
                name="PACS",
                roles=[Role.EHR],
                scopes="system/*.cruds",
                jwks=jwks("EC"),
                now=store.clock(),
            )
        async with TestClient(TestServer(app)) as node:

            async def status(scope: str, path: str) -> int:
                scopes = Scopes(read_scopes(scope))
                async with store.db.transaction() as tx:
                    token = await clients.open_token(
                        tx, client.client_id, scopes, now=store.clock()
                    )
                headers = {"Authorization": f"Bearer {token}"}
                return (await node.get(path, headers=headers)).status

            every = "system/*.cruds"
            images = "system/ImagingStudy.rs"
            unknown = "/dicom-web/studies/1.2.3/metadata"
            assert await status(images, unknown) == 404
            assert await status(f"{images}?status=available", unknown) == 403
            assert await status("system/Patient.rs", unknown) == 403
            assert await status(images, "/fhir/ImagingStudy") == 200
            closed = {
                resource.canonical
                for group in groups
                if group.prefix not in ("/fhir", "/dicom-web")
                for route in web.Application().add_routes(group.routes)
                if (resource := route.resource)
                and route.method == "GET"
                and resource.canonical not in group.public
            }
            assert {"/auth/me", "/auth/clients", "/review/agreement"} & closed
            for path in sorted(closed):
                asked = re.sub(r"\{[^}]*\}", str(client.client_id), path)
                assert await status(every, asked) == 403, path
