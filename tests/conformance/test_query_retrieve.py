"""An Orthanc that searches the node and fetches from it (PS3.4 C)."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from dicom_scp.receiving.peers import Peer, Peers, ServiceName
from dicom_scp.receiving.scp import ScpSettings, StorageScp
from dicom_scp.sending.scu import Destination
from dicom_scp.services import query, retrieve
from dicom_scp.services.query import QuerySettings
from dicom_scp.services.retrieve import RetrieveSettings
from node.store.store import Store, open_store
from tests.conformance.orthanc import Orthanc
from tests.dicom_scp.instances import data_set_bytes
from tests.dicom_scp.services import archive
from tests.dicom_scp.services.archive import JANUARY, MARCH

NAMES = ("PatientName", "StudyInstanceUID", "StudyDate", "ModalitiesInStudy")


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    server = Orthanc(tmp_path_factory.mktemp("orthanc"))
    try:
        server.wait()
        yield server
    finally:
        server.kill()


@pytest.fixture
async def filled(store: Store, orthanc: Orthanc) -> AsyncIterator[dict[str, bytes]]:
    """Our port with some studies, known to Orthanc as `node`."""

    async def open_another() -> Store:
        return await open_store(
            store.db._dsn, store.ring._root_path, store.blobs._root, store.clock
        )

    services = frozenset({ServiceName.QUERY, ServiceName.RETRIEVE})
    place = Destination("ORTHANC", "127.0.0.1", orthanc.dicom)
    scp = StorageScp(
        ScpSettings(
            host="127.0.0.1",
            port=0,
            peers=Peers([Peer("ORTHANC", services=services)]),
            min_free_bytes=0,
        ),
        open_another,
        [
            query.service(QuerySettings()),
            retrieve.service(RetrieveSettings(destinations={"ORTHANC": place})),
        ],
    )
    await asyncio.to_thread(scp.start)
    modality = {"AET": "SONONODE", "Host": "127.0.0.1", "Port": scp.ports[0]}
    orthanc.put("/modalities/node", modality)
    # It turns every answer into one encoding of its own, Latin-1 unless told.
    orthanc.put("/tools/default-encoding", "Utf8")
    yield await archive.fill(store)
    await asyncio.to_thread(scp.stop, grace_s=1)


async def test_orthanc_finds_and_fetches_a_study(
    orthanc: Orthanc, filled: dict[str, bytes]
) -> None:
    def post(path: str, body: object) -> Any:
        return json.loads(orthanc.get(path, json.dumps(body).encode()) or b"{}")

    def search_and_fetch() -> list[dict[str, str]]:
        asked = {**dict.fromkeys(NAMES, ""), "PatientName": "ZHANG*"}
        asked["StudyDate"] = "20260101-20260131"
        found = post(
            "/modalities/node/query",
            {"Level": "Study", "Query": asked},
        )
        answers = json.loads(orthanc.get(f"{found['Path']}/answers?expand&simplify"))
        post(f"{found['Path']}/answers/0/retrieve", {"TargetAet": "ORTHANC"})
        return list(answers)

    (answer,) = await asyncio.to_thread(search_and_fetch)
    assert answer["StudyInstanceUID"] == JANUARY
    assert answer["PatientName"] == "Zhang^San=张^三"
    assert answer["ModalitiesInStudy"] == "US"
    kept = await asyncio.to_thread(orthanc.files)
    ours = {data_set_bytes(filled[uid]) for uid in filled if uid.startswith(JANUARY)}
    assert {data_set_bytes(file) for file in kept} == ours
    assert MARCH not in answer.values()
