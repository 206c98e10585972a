"""Whom the node calls: listed hosts, listed networks, its certificate, no redirect."""

import datetime
import ipaddress
import ssl
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from config.settings import load_settings
from fhir.subscriptions.endpoints import (
    calling_tls,
    hook_session,
    post,
    read_endpoints,
)
from node.domain.errors import ErrorKind, NodeError
from node.parts import hook_tls_of

LISTED = ["ehr.hospital", "lab.hospital:8443", "http://old.hospital:8080", "10.1.2.3"]


@pytest.mark.parametrize(
    ("endpoint", "allowed"),
    [
        ("https://ehr.hospital/hook", True),
        ("https://EHR.hospital:9443/hook", True),
        ("http://ehr.hospital/hook", False),
        ("https://lab.hospital:8443/", True),
        ("https://lab.hospital/", False),
        ("http://old.hospital:8080/", True),
        ("https://old.hospital:8080/", False),
        ("http://old.hospital/", False),
        ("https://10.1.2.3/", True),
        ("https://10.1.2.4/", False),
        ("https://ehr.hospital.evil.example/", False),
        ("https://ehr.hospital@evil.example/", False),
        ("https://user@ehr.hospital/", False),
        ("ftp://ehr.hospital/", False),
        ("https://ehr.hospital:99999/", False),
        ("//ehr.hospital/", False),
        ("", False),
    ],
)
def test_only_what_is_listed_is_called_and_by_https_unless_listed_otherwise(
    endpoint: str, allowed: bool
) -> None:
    assert read_endpoints(LISTED, []).allow(endpoint) is allowed


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        ("8.8.8.8", True),
        ("10.20.1.1", True),
        ("10.21.1.1", False),
        ("127.0.0.1", False),
        ("169.254.169.254", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("::ffff:10.20.1.1", True),
        ("::ffff:127.0.0.1", False),
        ("2606:4700::1111", True),
    ],
)
def test_a_name_leads_to_public_addresses_and_listed_networks_only(
    address: str, allowed: bool
) -> None:
    assert read_endpoints([], ["10.20.0.0/16"]).lead_to(address) is allowed


@pytest.mark.parametrize(
    ("hosts", "networks", "setting"),
    [
        (["ftp://x"], [], "fhir.hook_hosts"),
        (["ehr/path"], [], "fhir.hook_hosts"),
        (["ehr:port"], [], "fhir.hook_hosts"),
        ([""], [], "fhir.hook_hosts"),
        ([], ["10.0.0.1/8"], "fhir.hook_networks"),
    ],
)
def test_a_faulty_list_is_named(
    hosts: list[str], networks: list[str], setting: str
) -> None:
    with pytest.raises(NodeError, match=setting) as caught:
        read_endpoints(hosts, networks)
    assert caught.value.kind is ErrorKind.SETTING


async def test_a_listed_name_that_leads_inside_is_not_called() -> None:
    called: list[str] = []

    async def receive(request: web.Request) -> web.Response:
        called.append(request.host)
        return web.Response()

    async with _served(receive) as port:
        url = f"http://localhost:{port}/hook"
        for networks, answer in ([], None), (["127.0.0.0/8", "::1/128"], 200):
            endpoints = read_endpoints(["http://localhost"], networks)
            assert endpoints.allow(url)
            async with hook_session(endpoints) as session:
                assert await post(session, url, b"{}", {}, 5) == answer
    assert called == [f"localhost:{port}"]


async def test_a_redirect_is_not_followed() -> None:
    async def receive(request: web.Request) -> web.Response:
        assert request.path == "/hook"
        return web.Response(status=307, headers={"Location": "/elsewhere"})

    async with _served(receive) as port:
        endpoints = read_endpoints(["http://127.0.0.1"], [])
        async with hook_session(endpoints) as session:
            url = f"http://127.0.0.1:{port}/hook"
            assert await post(session, url, b"{}", {}, 5) == 307


async def test_a_hook_that_asks_who_we_are_sees_our_certificate(
    tmp_path: Path,
) -> None:
    files = _certificates(tmp_path)
    seen: list[Any] = []

    async def receive(request: web.Request) -> web.Response:
        assert request.transport is not None
        seen.append(request.transport.get_extra_info("peercert")["subject"])
        return web.Response()

    asking = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=files["ca"])
    asking.verify_mode = ssl.CERT_REQUIRED
    asking.load_cert_chain(files["hook"], files["hook.key"])
    endpoints = read_endpoints(["127.0.0.1"], [])
    async with _served(receive, asking) as port:
        url = f"https://127.0.0.1:{port}/hook"
        tls = calling_tls(files["node"], files["node.key"], files["ca"])
        nobody = calling_tls("", "", files["ca"])
        async with hook_session(endpoints) as session:
            assert await post(session, url, b"{}", {}, 5, tls) == 200
            assert await post(session, url, b"{}", {}, 5, nobody) is None
            # Whom the system trusts.
            assert await post(session, url, b"{}", {}, 5) is None
    assert seen == [((("commonName", "node"),),)]


async def test_a_renewed_certificate_is_shown_from_the_next_call_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = _certificates(tmp_path)
    seen: list[str] = []

    async def receive(request: web.Request) -> web.Response:
        assert request.transport is not None
        shown = request.transport.get_extra_info("peercert")["subject"]
        seen.append(shown[0][0][1])
        return web.Response()

    asking = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=files["ca"])
    asking.verify_mode = ssl.CERT_REQUIRED
    asking.load_cert_chain(files["hook"], files["hook.key"])
    values = {
        "SONONODE_DATA": str(tmp_path),
        "SONONODE_FHIR__HOOK_CERTIFICATE": "node",
        "SONONODE_FHIR__HOOK_KEY": "node.key",
        "SONONODE_FHIR__HOOK_TRUSTED": "ca",
    }
    tls = hook_tls_of(load_settings(values))
    endpoints = read_endpoints(["127.0.0.1"], [])
    async with _served(receive, asking) as port, hook_session(endpoints) as session:
        url = f"https://127.0.0.1:{port}/hook"

        async def call() -> int | None:
            return await post(session, url, b"{}", {}, 5, tls())

        assert (await call(), await call()) == (200, 200)
        (tmp_path / "node").write_bytes(b"half of it")
        assert await call() == 200
        assert await call() == 200
        for suffix in (".key", ""):
            renewed = Path(files[f"hook{suffix}"]).read_bytes()
            (tmp_path / f"node{suffix}").write_bytes(renewed)
        assert await call() == 200
    assert seen == [*["node"] * 4, "hook"]
    told = capsys.readouterr().out
    assert told.count("fhir.hook_certificates_not_loaded") == 1


def test_a_certificate_without_its_key_is_refused_by_name(tmp_path: Path) -> None:
    files = _certificates(tmp_path)
    assert calling_tls("", "", "") is None
    for told, setting in (
        ((files["node"], "", ""), "fhir.hook_certificate and fhir.hook_key"),
        ((files["node"], files["hook.key"], ""), "fhir.hook_certificate"),
        (("", "", str(tmp_path / "none")), "fhir.hook_trusted"),
    ):
        with pytest.raises(NodeError, match=setting) as caught:
            calling_tls(*told)
        assert caught.value.kind is ErrorKind.SETTING


class _served:
    """A server on a free port while the block runs."""

    def __init__(self, receive: Any, tls: ssl.SSLContext | None = None) -> None:
        app = web.Application()
        app.router.add_post("/{path:.*}", receive)
        self._runner, self._tls = web.AppRunner(app, access_log=None), tls

    async def __aenter__(self) -> int:
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self._tls)
        await site.start()
        assert site._server is not None
        return int(site._server.sockets[0].getsockname()[1])

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()


def _certificates(folder: Path) -> dict[str, str]:
    """Return files of an authority and of two whom it vouches for."""
    authority = ec.generate_private_key(ec.SECP256R1())
    files: dict[str, str] = {}
    for name in ("ca", "hook", "node"):
        key = authority if name == "ca" else ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ca")])
        now = datetime.datetime.now(datetime.UTC)
        address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(name == "ca", None), critical=True)
            .add_extension(x509.SubjectAlternativeName([address]), critical=False)
            .sign(authority, hashes.SHA256())
        )
        pem = certificate.public_bytes(serialization.Encoding.PEM)
        secret = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        for suffix, content in (("", pem), (".key", secret)):
            path = folder / f"{name}{suffix}"
            path.write_bytes(content)
            files[path.name] = str(path)
    return files
