"""Settings: `default.toml` < the file in $SONONODE_CONFIG < the environment.

All faults are found before anything starts and told together, each with the
setting's name and the mend.
"""

import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from ipaddress import ip_network
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

_PREFIX = "SONONODE_"
_DEFAULTS = Path(__file__).with_name("default.toml")


class SettingsError(Exception):
    """One or more settings are wrong; `faults` has a line for each."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


@dataclass(frozen=True)
class Site:
    institution: str
    department: str
    department_phone: str
    language: str
    timezone_offset: str


@dataclass(frozen=True)
class DatabaseSettings:
    url: str
    pool_size: int


@dataclass(frozen=True)
class Keys:
    root_file: Path


@dataclass(frozen=True)
class Storage:
    objects: Path
    minimum_free_mb: int


EVIDENCE = ("mpps", "commitment", "release", "silence")


@dataclass(frozen=True)
class Coerce:
    """One table of `dicom.peers.coerce`: a correction of what the peer sends."""

    keyword: str
    action: str
    value: str = ""
    pattern: str = ""


@dataclass(frozen=True)
class Peer:
    """One table of `dicom.peers`: another DICOM node, as caller and as called."""

    ae_title: str
    name: str = ""
    services: list[str] = field(default_factory=lambda: ["store", "commitment", "mpps"])
    addresses: list[str] = field(default_factory=list)
    certificate: str = ""
    host: str = ""
    port: int = 104
    tls: bool = False
    sop_classes: list[str] = field(default_factory=list)
    transfer_syntaxes: list[str] = field(default_factory=list)
    duplicates: str = "reject"
    coerce: list[Coerce] = field(default_factory=list)
    maximum_associations: int = 0
    commitment_reply: str = "new"
    move_to: list[str] = field(default_factory=list)
    charset: str = ""
    completion: list[str] = field(default_factory=lambda: list(EVIDENCE))
    quiet_period_s: float | None = None
    quiet_after_release_s: float | None = None

    @property
    def fingerprints(self) -> list[str]:
        """Return the fingerprints of `certificate` in plain hex."""
        told = (one.strip() for one in self.certificate.split(","))
        return [one.replace(":", "").lower() for one in told if one]


@dataclass(frozen=True)
class Dicom:
    ae_title: str
    host: str
    port: int
    tls_port: int
    tls_certificate: str
    tls_key: str
    tls_client_ca: str
    tls_client_certificates: str
    tls_trusted: str
    tls_calling_certificate: str
    tls_calling_key: str
    tls_check_names: bool
    allowed_calling_aes: list[str]
    peers: list[Peer]
    maximum_associations: int
    maximum_associations_per_host: int
    maximum_pdu_size: int
    association_timeout_s: float
    network_timeout_s: float
    shutdown_grace_s: float


@dataclass(frozen=True)
class Worklist:
    stations: str
    in_progress: bool
    past_days: int
    maximum_answers: int


@dataclass(frozen=True)
class Query:
    maximum_matches: int
    maximum_opened: int
    relational: bool
    show_rejected: bool


@dataclass(frozen=True)
class Completion:
    quiet_period_s: float
    quiet_after_release_s: float
    missing_wait_s: float
    stale_step_s: float


@dataclass(frozen=True)
class Commitment:
    grace_s: float
    reply_wait_s: float
    patience_h: float


@dataclass(frozen=True)
class Pacs:
    ae_title: str
    host: str
    port: int
    calling_ae_title: str
    sr_sop_classes: list[str]
    tls: bool
    commitment: bool


SR_SOP_CLASSES = (
    "1.2.840.10008.5.1.4.1.1.88.34",
    "1.2.840.10008.5.1.4.1.1.88.33",
    "1.2.840.10008.5.1.4.1.1.88.22",
)


@dataclass(frozen=True)
class Outlet:
    """One table of `routing.destinations`: where instances may be sent."""

    name: str
    kind: str = "dimse"
    ae_title: str = ""
    host: str = ""
    port: int = 104
    tls: bool = False
    calling_ae_title: str = ""
    url: str = ""
    token_file: str = ""
    user: str = ""
    password_file: str = ""
    trusted: str = ""
    certificate: str = ""
    key: str = ""
    sr_sop_classes: list[str] = field(default_factory=lambda: list(SR_SOP_CLASSES))
    schedule: list[str] = field(default_factory=list)
    bandwidth_kbit_s: float = 0.0
    parallel: int = 2
    priority: str = ""
    commitment: bool = False


@dataclass(frozen=True)
class RoutingRule:
    """One table of `routing.rules`: which instances go where."""

    name: str
    to: list[str]
    when: str = "complete"
    calling_ae: list[str] = field(default_factory=list)
    modality: list[str] = field(default_factory=list)
    sop_class: list[str] = field(default_factory=list)
    origin: list[str] = field(default_factory=list)
    study_description: list[str] = field(default_factory=list)
    category_at_least: str = ""
    status: list[str] = field(default_factory=list)
    priority: str = ""
    stop: bool = False


@dataclass(frozen=True)
class Routing:
    destinations: list[Outlet]
    rules: list[RoutingRule]


@dataclass(frozen=True)
class Results:
    key_images: bool
    segmentation: bool
    pdf: str


@dataclass(frozen=True)
class Http:
    host: str
    port: int
    public_url: str
    secure_cookies: bool
    session_idle_minutes: int
    session_hours: int
    maximum_body_mb: int

    @property
    def base_url(self) -> str:
        """Return the URL under which browsers and the EHR reach the node."""
        host = "127.0.0.1" if self.host == "0.0.0.0" else self.host  # noqa: S104
        return self.public_url.rstrip("/") or f"http://{host}:{self.port}"


@dataclass(frozen=True)
class Ehr:
    """One table of `fhir.ehrs`: an EHR that opens the review page for its doctors."""

    iss: str
    client_id: str
    scope: str = "launch patient/ImagingStudy.rs patient/ServiceRequest.rs"
    hosts: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ReportRepository:
    """One table of `fhir.repositories`: who gets every signed report (IHE RAD-141)."""

    name: str
    url: str
    format: str = "json"
    patient: str = "number"
    token_file: str = ""
    certificate: str = ""
    key: str = ""
    trusted: str = ""


@dataclass(frozen=True)
class Fhir:
    ai_report_status: str
    page_size: int
    patient_id_system: str
    accession_system: str
    export_keep_h: float
    exports_at_once: int
    organization_system: str
    organization_id: str
    topics: str
    hook_hosts: list[str]
    hook_networks: list[str]
    hook_secret_file: str
    hook_secret_overlap_h: float
    hook_certificate: str
    hook_key: str
    hook_trusted: str
    key_hosts: list[str]
    repositories: list[ReportRepository]
    ehrs: list[Ehr]


@dataclass(frozen=True)
class Oidc:
    """The table `auth.oidc`: the hospital's identity provider; no issuer: none."""

    issuer: str = ""
    client_id: str = ""
    client_secret_file: str = ""
    private_key_file: str = ""
    scope: str = "openid profile"
    username_claim: str = "preferred_username"
    display_claim: str = "name"
    role_claim: str = "roles"
    roles: list[str] = field(default_factory=list)
    hosts: list[str] = field(default_factory=list)

    @property
    def role_of(self) -> dict[str, str]:
        """Return the role here of each value of the role claim."""
        pairs = (entry.rpartition("=") for entry in self.roles)
        return {word.strip(): role.strip() for word, _, role in pairs}


@dataclass(frozen=True)
class Auth:
    local_logins: list[str]
    oidc: Oidc


@dataclass(frozen=True)
class Syslog:
    """The table `audit.syslog`: an ATNA repository; no host: none."""

    host: str = ""
    port: int = 6514
    ca: str = ""
    certificate: str = ""
    key: str = ""
    needs_receipt: bool = False


@dataclass(frozen=True)
class Audit:
    syslog: Syslog


@dataclass(frozen=True)
class Inference:
    weights: str
    engine: str
    exports: str
    threads: int
    stuck_after_s: float
    read_simulated: bool
    cine_frames: int
    agreement_window: int
    drift_alpha: float


@dataclass(frozen=True)
class Relay:
    enabled: bool
    url: str
    host: str
    port: int
    database_url: str
    key_file: Path
    hook_secret_file: Path


@dataclass(frozen=True)
class WeChat:
    api_url: str
    app_id: str
    app_secret_file: Path
    template_id: str
    mini_program_page: str


@dataclass(frozen=True)
class Log:
    level: str
    format: str


@dataclass(frozen=True)
class Settings:
    """All settings of one installation; `data` is the directory they live under."""

    data: Path
    site: Site
    database: DatabaseSettings
    keys: Keys
    storage: Storage
    dicom: Dicom
    worklist: Worklist
    query: Query
    completion: Completion
    commitment: Commitment
    pacs: Pacs
    routing: Routing
    results: Results
    http: Http
    fhir: Fhir
    auth: Auth
    audit: Audit
    inference: Inference
    relay: Relay
    wechat: WeChat
    log: Log


# What a person can be; the roles of machines are given by hand.
PEOPLE_ROLES = (
    "technologist",
    "radiologist",
    "senior_radiologist",
    "administrator",
    "auditor",
    "researcher",
)
PEER_SERVICES = ("store", "commitment", "worklist", "mpps", "query", "retrieve")
DUPLICATES = ("reject", "keep-both")
# What answers to a machine can be written in, whatever it asks for.
CHARSETS = ("ISO_IR 192", "GB18030", "GBK", "\\ISO 2022 IR 58", "ISO_IR 100")
_CHOICES = {
    "site.language": ("zh-CN", "en"),
    "dicom.tls_client_certificates": ("required", "optional"),
    "results.pdf": ("none", "site", "both"),
    "worklist.stations": ("own", "asked", "all"),
    "fhir.ai_report_status": ("partial", "preliminary"),
    "inference.engine": ("auto", "openvino", "torch"),
    "log.level": ("debug", "info", "warning", "error"),
    "log.format": ("auto", "json", "console"),
}
_RANGES = (
    ("worklist.past_days", 0, 3650),
    ("worklist.maximum_answers", 1, 10_000),
    ("query.maximum_matches", 1, 100_000),
    ("query.maximum_opened", 100, 1_000_000),
    ("completion.quiet_period_s", 0, 86_400),
    ("completion.quiet_after_release_s", 0, 86_400),
    ("completion.missing_wait_s", 0, 604_800),
    ("completion.stale_step_s", 60, 604_800),
    ("commitment.grace_s", 0, 3600),
    ("commitment.reply_wait_s", 0, 60),
    ("commitment.patience_h", 0.1, 168),
    ("fhir.export_keep_h", 0.1, 720),
    ("fhir.exports_at_once", 1, 20),
    ("inference.stuck_after_s", 1, 3600),
    ("inference.cine_frames", 1, 50),
    # Fewer than 30 reports are never judged (node.domain.agreement.LEAST_TRIALS).
    ("inference.agreement_window", 30, 10_000),
    ("inference.drift_alpha", 0.000001, 0.2),
)


def load_settings(environment: Mapping[str, str]) -> Settings:
    """Return the settings for `environment`; SettingsError names every fault."""
    faults: list[str] = []
    values = _read_toml(_DEFAULTS, faults)
    if chosen := environment.get(f"{_PREFIX}CONFIG"):
        _merge(values, _read_toml(Path(chosen), faults), chosen, faults)
    _merge(values, _from_environment(environment), "the environment", faults)
    data = Path(environment.get(f"{_PREFIX}DATA", "var")).absolute()
    sections = _build(values, data, faults)
    _check(values, faults)
    if not faults:
        _check_peers(sections["dicom"], faults)
        _check_routing(sections["routing"], sections["pacs"], faults)
        _check_repositories(sections["fhir"], faults)
        _check_auth(sections["auth"], faults)
        _check_syslog(sections["audit"].syslog, faults)
    if faults:
        raise SettingsError(faults)
    return Settings(data=data, **sections)


def _read_toml(path: Path, faults: list[str]) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        faults.append(f"{path}: cannot be read ({error.strerror}); see SONONODE_CONFIG")
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        faults.append(f"{path}: is not valid TOML ({error})")
    return {}


def _from_environment(environment: Mapping[str, str]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for name, text in environment.items():
        if name.startswith(_PREFIX) and "__" in name:
            section, _, key = name.removeprefix(_PREFIX).lower().partition("__")
            found.setdefault(section, {})[key] = text
    return found


def _merge(
    values: dict[str, Any], more: Mapping[str, Any], source: str, faults: list[str]
) -> None:
    for section, entries in more.items():
        if section not in values or not isinstance(entries, Mapping):
            faults.append(f"{section}: {source} names a section that does not exist")
            continue
        for key, value in entries.items():
            if key not in values[section]:
                faults.append(f"{section}.{key}: {source} sets it, but it is unknown")
            else:
                values[section][key] = value


def _build(values: Mapping[str, Any], data: Path, faults: list[str]) -> dict[str, Any]:
    sections: dict[str, Any] = {}
    for name, section_type in get_type_hints(Settings).items():
        if name == "data":
            continue
        sections[name] = _table(name, values.get(name, {}), section_type, data, faults)
    return sections


def _table(
    name: str, given: Mapping[str, Any], wanted: Any, data: Path, faults: list[str]
) -> Any:
    """Return a table as its dataclass; what it leaves out has the default there."""
    hints = get_type_hints(wanted)
    for unknown in given.keys() - hints.keys():
        faults.append(f"{name}.{unknown}: is set, but it is unknown")
    built = {}
    for f in fields(wanted):
        if f.name in given:
            told = f"{name}.{f.name}"
            built[f.name] = _convert(told, given[f.name], hints[f.name], data, faults)
        elif f.default is MISSING and f.default_factory is MISSING:
            faults.append(f"{name}.{f.name}: is missing; see config/default.toml")
            built[f.name] = None
    return wanted(**built)


def _tables(
    name: str, value: Any, wanted: Any, data: Path, faults: list[str]
) -> list[Any]:
    """Return an array of tables; the environment writes it as JSON."""
    given = json.loads(value) if isinstance(value, str) else value
    if not isinstance(given, list) or not all(isinstance(t, Mapping) for t in given):
        raise ValueError
    return [
        _table(f"{name}[{number}]", table, wanted, data, faults)
        for number, table in enumerate(given, start=1)
    ]


def _convert(name: str, value: Any, wanted: Any, data: Path, faults: list[str]) -> Any:
    """Return `value` as the type the setting has; text comes from the environment."""
    if get_origin(wanted) is UnionType:
        if value is None:
            return None
        (wanted,) = (kind for kind in get_args(wanted) if kind is not NoneType)
    try:
        if wanted is bool:
            return _boolean(value)
        if is_dataclass(wanted) and isinstance(value, str):
            value = json.loads(value)
        if is_dataclass(wanted) and isinstance(value, Mapping):
            return _table(name, value, wanted, data, faults)
        if wanted is Path:
            return data / str(value)
        if get_origin(wanted) is list and is_dataclass(get_args(wanted)[0]):
            return _tables(name, value, get_args(wanted)[0], data, faults)
        if get_origin(wanted) is list:
            parts = value.split(",") if isinstance(value, str) else value
            item_type = get_args(wanted)[0]
            return [item_type(str(part).strip()) for part in parts if str(part).strip()]
        if wanted in (int, float) and not isinstance(value, bool):
            return wanted(value)
        if wanted is str and isinstance(value, str):
            return value
        raise ValueError
    except (TypeError, ValueError):
        kind = _KINDS.get(wanted, "a list")
        faults.append(f"{name}: {value!r} is not {kind}; see config/default.toml")
        return None


_KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    Path: "a path",
}


def _boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    words = {
        "true": True,
        "1": True,
        "yes": True,
        "false": False,
        "0": False,
        "no": False,
    }
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    raise ValueError


def _check(values: Mapping[str, Any], faults: list[str]) -> None:
    for name, allowed in _CHOICES.items():
        section, key = name.split(".")
        value = values.get(section, {}).get(key)
        if value not in allowed:
            faults.append(f"{name}: {value!r} is none of {', '.join(allowed)}")
    if not _is_title(str(values.get("dicom", {}).get("ae_title", ""))):
        faults.append("dicom.ae_title: has 1 to 16 ASCII signs without a backslash")
    ports = ("dicom.port", "dicom.tls_port", "http.port", "relay.port", "pacs.port")
    for name in ports:
        section, key = name.split(".")
        if _out_of_range(values.get(section, {}).get(key)):
            faults.append(f"{name}: must be a port from 1 to 65535")
    for name, least, most in _RANGES:
        section, key = name.split(".")
        if _outside(values.get(section, {}).get(key), least, most):
            faults.append(f"{name}: must be from {least:g} to {most:g}")


def _check_syslog(syslog: Syslog, faults: list[str]) -> None:
    if not syslog.host and syslog != Syslog():
        faults.append("audit.syslog.host: is needed with the rest of it")
    if _out_of_range(syslog.port):
        faults.append("audit.syslog.port: must be a port from 1 to 65535")
    if bool(syslog.certificate) != bool(syslog.key):
        faults.append("audit.syslog.key: certificate and key belong together")


def _check_auth(auth: Auth, faults: list[str]) -> None:
    oidc = auth.oidc
    if not oidc.issuer:
        if oidc != Oidc():
            faults.append("auth.oidc.issuer: is needed with the rest of it")
        if not auth.local_logins:
            faults.append("auth.local_logins: is empty, and auth.oidc has no issuer")
        return
    if not re.match(r"https://[^/?#]+|http://(127\.0\.0\.1|localhost)\b", oidc.issuer):
        faults.append("auth.oidc.issuer: is an https address")
    if not oidc.client_id:
        faults.append("auth.oidc.client_id: is needed, as the provider calls us")
    if oidc.client_secret_file and oidc.private_key_file:
        faults.append("auth.oidc.private_key_file: or client_secret_file, not both")
    if "openid" not in oidc.scope.split():
        faults.append("auth.oidc.scope: has openid in it")
    if not oidc.roles:
        faults.append("auth.oidc.roles: is empty, so that nobody could sign in")
    for word, role in oidc.role_of.items():
        if not word or role not in PEOPLE_ROLES:
            known = ", ".join(PEOPLE_ROLES)
            faults.append(f"auth.oidc.roles: value=role, the role one of {known}")


def _check_repositories(fhir: Fhir, faults: list[str]) -> None:
    names = [one.name for one in fhir.repositories]
    for number, one in enumerate(fhir.repositories, start=1):
        told = f"fhir.repositories[{number}]"
        if not one.name.strip() or "/" in one.name or names.count(one.name) > 1:
            faults.append(f"{told}.name: is needed, without a slash, once")
        if not one.url.startswith(("http://", "https://")):
            faults.append(f"{told}.url: must begin with https:// (or http://)")
        if one.format not in ("json", "xml"):
            faults.append(f"{told}.format: {one.format!r} is none of json, xml")
        if one.patient not in ("number", "address"):
            faults.append(f"{told}.patient: {one.patient!r} is none of number, address")
        if bool(one.certificate) != bool(one.key):
            faults.append(f"{told}.key: certificate and key belong together")


def _check_peers(dicom: Dicom, faults: list[str]) -> None:
    titles = [peer.ae_title for peer in dicom.peers]
    for number, peer in enumerate(dicom.peers, start=1):
        name = f"dicom.peers[{number}]"
        if not _is_title(peer.ae_title) or titles.count(peer.ae_title) > 1:
            faults.append(
                f"{name}.ae_title: has 1 to 16 ASCII signs without a backslash, once"
            )
        if peer.commitment_reply not in ("new", "same"):
            faults.append(
                f"{name}.commitment_reply: {peer.commitment_reply!r} is none of"
                " new, same"
            )
        for service in set(peer.services) - set(PEER_SERVICES):
            known = ", ".join(PEER_SERVICES)
            faults.append(f"{name}.services: {service!r} is none of {known}")
        for address in peer.addresses:
            try:
                ip_network(address)
            except ValueError:
                faults.append(f"{name}.addresses: {address!r} is no IP network")
        if _out_of_range(peer.port):
            faults.append(f"{name}.port: must be a port from 1 to 65535")
        for title in peer.move_to:
            if not any(o.host for o in dicom.peers if o.ae_title == title):
                faults.append(f"{name}.move_to: {title!r} is no peer with a host")
        if peer.duplicates not in DUPLICATES:
            known = ", ".join(DUPLICATES)
            faults.append(f"{name}.duplicates: {peer.duplicates!r} is none of {known}")
        if not 0 <= peer.maximum_associations <= dicom.maximum_associations:
            most = f"{dicom.maximum_associations} (dicom.maximum_associations)"
            faults.append(f"{name}.maximum_associations: must be from 0 to {most}")
        for kind in set(peer.completion) - set(EVIDENCE):
            known = ", ".join(EVIDENCE)
            faults.append(f"{name}.completion: {kind!r} is none of {known}")
        for key in ("quiet_period_s", "quiet_after_release_s"):
            if _outside(getattr(peer, key), 0, 86_400):
                faults.append(f"{name}.{key}: must be from 0 to 86400")
        if peer.charset and peer.charset not in CHARSETS:
            known = ", ".join(CHARSETS)
            faults.append(f"{name}.charset: {peer.charset!r} is none of {known}")
        _check_certificate(name, peer, dicom, faults)


def _check_certificate(name: str, peer: Peer, dicom: Dicom, faults: list[str]) -> None:
    if not all(re.fullmatch("[0-9a-f]{64}", one) for one in peer.fingerprints):
        faults.append(
            f"{name}.certificate: has the SHA-256 fingerprint, 64 hexadecimal digits;"
            " two of them with a comma between"
        )
    elif peer.fingerprints and not (dicom.tls_certificate and dicom.tls_client_ca):
        faults.append(
            f"{name}.certificate: nobody can show one without dicom.tls_certificate"
            " and dicom.tls_client_ca"
        )


_RULE_WORDS = {
    "when": ("arrival", "complete"),
    "priority": ("", "high", "normal", "low"),
    "category_at_least": ("", "0", "1", "2", "3", "4A", "4B", "4C", "5", "6"),
    "origin": (
        "received",
        "ai_sr",
        "verified_sr",
        "heat_map",
        "segmentation",
        "key_images",
        "rejection",
        "pdf",
    ),
    "status": (
        "partial",
        "preliminary",
        "final",
        "amended",
        "corrected",
        "appended",
        "entered-in-error",
    ),
}
_WINDOW = re.compile(r"([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d")


def _check_routing(routing: Routing, pacs: Pacs, faults: list[str]) -> None:
    names = [outlet.name for outlet in routing.destinations]
    if pacs.ae_title:
        names.append(pacs.ae_title)
    for number, outlet in enumerate(routing.destinations, start=1):
        told = f"routing.destinations[{number}]"
        if not outlet.name.strip() or "/" in outlet.name:
            faults.append(f"{told}.name: is needed, without a slash")
        elif names.count(outlet.name) > 1:
            faults.append(f"{told}.name: {outlet.name!r} is there twice")
        _check_outlet(told, outlet, faults)
    titles = [rule.name for rule in routing.rules]
    for number, rule in enumerate(routing.rules, start=1):
        told = f"routing.rules[{number}]"
        if not rule.name.strip() or titles.count(rule.name) > 1:
            faults.append(f"{told}.name: is needed, once")
        _check_rule(told, rule, names, faults)


def _check_outlet(told: str, outlet: Outlet, faults: list[str]) -> None:
    if outlet.kind == "dimse":
        if not _is_title(outlet.ae_title):
            faults.append(
                f"{told}.ae_title: has 1 to 16 ASCII signs without a backslash"
            )
        if not outlet.host:
            faults.append(f"{told}.host: is needed for kind dimse")
        if _out_of_range(outlet.port):
            faults.append(f"{told}.port: must be a port from 1 to 65535")
    elif outlet.kind == "stow":
        if not outlet.url.startswith(("http://", "https://")):
            faults.append(f"{told}.url: must begin with https:// (or http://)")
        if outlet.commitment:
            faults.append(f"{told}.commitment: there is none over DICOMweb")
        if bool(outlet.user) != bool(outlet.password_file):
            faults.append(f"{told}.password_file: goes with user, and user with it")
    else:
        faults.append(f"{told}.kind: {outlet.kind!r} is none of dimse, stow")
    for window in outlet.schedule:
        if not _WINDOW.fullmatch(window):
            faults.append(f"{told}.schedule: {window!r} is no window like 22:00-06:00")
    if outlet.priority not in _RULE_WORDS["priority"]:
        faults.append(
            f"{told}.priority: {outlet.priority!r} is none of high, normal, low"
        )
    if outlet.bandwidth_kbit_s < 0:
        faults.append(f"{told}.bandwidth_kbit_s: must not be negative; 0 = no limit")
    if _outside(outlet.parallel, 1, 16):
        faults.append(f"{told}.parallel: must be from 1 to 16")


def _check_rule(
    told: str, rule: RoutingRule, names: list[str], faults: list[str]
) -> None:
    if not rule.to and not rule.stop:
        faults.append(f"{told}.to: names no destination")
    for name in sorted(set(rule.to) - set(names)):
        faults.append(f"{told}.to: {name!r} is no destination of routing or pacs")
    for key, allowed in _RULE_WORDS.items():
        value = getattr(rule, key)
        for word in value if isinstance(value, list) else [value]:
            if word not in allowed:
                listed = ", ".join(filter(None, allowed))
                faults.append(f"{told}.{key}: {word!r} is none of {listed}")
    if rule.origin == ["received"] and (rule.category_at_least or rule.status):
        faults.append(
            f"{told}.origin: category and status are known of results, never of"
            " received images"
        )


def _is_title(title: str) -> bool:
    return 1 <= len(title.strip()) <= 16 and "\\" not in title and title.isascii()


def _outside(value: Any, least: float, most: float) -> bool:
    try:
        return not least <= float(value) <= most
    except (TypeError, ValueError):
        return False  # no number at all, which is told already


def _out_of_range(port: Any) -> bool:
    try:
        return not 1 <= int(port) <= 65535
    except (TypeError, ValueError):
        return False  # no number at all, which is told already
