"""Settings come from three places; every fault is told at once, by name."""

import json
from pathlib import Path

import pytest

from config.settings import SettingsError, load_settings
from node.domain.completion import EvidenceKind
from node.parts import completion_settings_of


def test_the_documented_defaults_are_complete_and_valid() -> None:
    settings = load_settings({})
    assert settings.dicom.ae_title == "SONONODE"
    assert settings.dicom.port == 11112
    assert settings.keys.root_file.is_absolute()


def test_a_file_overrides_the_defaults_and_the_environment_overrides_the_file(
    tmp_path: Path,
) -> None:
    file = tmp_path / "site.toml"
    file.write_text('[dicom]\nae_title = "ROOM1"\nport = 4242\n', encoding="utf-8")
    settings = load_settings(
        {"SONONODE_CONFIG": str(file), "SONONODE_DICOM__PORT": "4343"}
    )
    assert (settings.dicom.ae_title, settings.dicom.port) == ("ROOM1", 4343)


def test_lists_and_switches_can_be_set_from_the_environment() -> None:
    settings = load_settings(
        {
            "SONONODE_DICOM__ALLOWED_CALLING_AES": "ROOM1, ROOM2",
            "SONONODE_INFERENCE__READ_SIMULATED": "true",
        }
    )
    assert settings.dicom.allowed_calling_aes == ["ROOM1", "ROOM2"]
    assert settings.inference.read_simulated is True


def test_all_faults_are_reported_at_once_by_name() -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(
            {
                "SONONODE_DICOM__PORT": "eleven",
                "SONONODE_DICOM__AE_TITLE": "A TITLE THAT IS TOO LONG",
                "SONONODE_LOG__LEVEL": "loud",
                "SONONODE_INFERENCE__AGREEMENT_WINDOW": "5",
                "SONONODE_INFERENCE__DRIFT_ALPHA": "nan",
                "SONONODE_DICOM__COLOUR": "red",
                "SONONODE_NOWHERE__KEY": "1",
            }
        )
    told = "\n".join(caught.value.faults)
    for name in (
        "dicom.port",
        "dicom.ae_title",
        "log.level",
        "inference.agreement_window",
        "inference.drift_alpha",
        "dicom.colour",
        "nowhere",
    ):
        assert name in told


def test_a_missing_settings_file_names_the_variable_that_points_to_it() -> None:
    with pytest.raises(SettingsError, match="SONONODE_CONFIG"):
        load_settings({"SONONODE_CONFIG": "/does/not/exist.toml"})


def test_peers_are_tables_of_a_file_or_json_of_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "site.toml"
    file.write_text(
        '[[dicom.peers]]\nae_title = "LOGIQ"\naddresses = ["10.1.2.0/24"]\n'
    )

    from_file = load_settings({"SONONODE_CONFIG": str(file)}).dicom.peers
    from_environment = load_settings(
        {
            "SONONODE_DICOM__PEERS": '[{"ae_title": "LOGIQ",'
            ' "addresses": ["10.1.2.0/24"]}]'
        }
    ).dicom.peers

    assert from_file == from_environment
    assert from_file[0].services == ["store", "commitment", "mpps"]


@pytest.mark.parametrize(
    ("told", "fault"),
    [
        ('[{"name": "x"}]', "dicom.peers[1].ae_title: is missing"),
        ('[{"ae_title": "A", "adress": "x"}]', "dicom.peers[1].adress: is set, but"),
        ('[{"ae_title": "A", "services": ["all"]}]', "'all' is none of store"),
        ('[{"ae_title": "A", "addresses": ["room 1"]}]', "'room 1' is no IP network"),
        ('[{"ae_title": "A"}, {"ae_title": "A"}]', "dicom.peers[2].ae_title"),
        ('[{"ae_title": "A", "move_to": ["B"]}]', "dicom.peers[1].move_to: 'B' is no"),
        ('{"ae_title": "A"}', "is not a list"),
        ("none", "is not a list"),
    ],
)
def test_a_wrong_peer_is_named(told: str, fault: str) -> None:
    with pytest.raises(SettingsError) as raised:
        load_settings({"SONONODE_DICOM__PEERS": told})

    assert fault in str(raised.value)


def test_a_character_set_that_we_cannot_write_is_named() -> None:
    peer = '[{"ae_title": "A", "charset": "%s"}]'
    known = load_settings({"SONONODE_DICOM__PEERS": peer % "\\\\ISO 2022 IR 58"})
    assert known.dicom.peers[0].charset == "\\ISO 2022 IR 58"
    with pytest.raises(SettingsError, match=r"dicom.peers\[1\].charset: 'UTF-8'"):
        load_settings({"SONONODE_DICOM__PEERS": peer % "UTF-8"})


def test_each_machine_has_its_own_rules_for_the_end_of_a_study() -> None:
    peers = '[{"ae_title": "US1", "completion": ["mpps"], "quiet_period_s": 7}]'
    settings = load_settings({"SONONODE_DICOM__PEERS": peers})
    own = completion_settings_of(settings).rules_of("US1")
    assert own.trusted == {EvidenceKind.MPPS}
    assert (own.quiet_period_s, own.quiet_after_release_s) == (7, 5)
    anybody = completion_settings_of(settings).rules_of("ELSE")
    assert anybody.trusted == set(EvidenceKind)
    wrong = peers.replace("mpps", "hope").replace("7", "-1")
    with pytest.raises(SettingsError) as caught:
        load_settings({"SONONODE_DICOM__PEERS": wrong})
    assert [fault.split(":")[0] for fault in caught.value.faults] == [
        "dicom.peers[1].completion",
        "dicom.peers[1].quiet_period_s",
    ]


@pytest.mark.parametrize(
    ("told", "fault"),
    [
        ('{"ca": "x.pem"}', "audit.syslog.host"),
        ('{"host": "a", "port": 0}', "audit.syslog.port"),
        ('{"host": "a", "certificate": "x.pem"}', "audit.syslog.key"),
        ('{"host": "a", "tls": true}', "audit.syslog.tls: is set, but it is unknown"),
    ],
)
def test_a_repository_that_cannot_be_meant_is_named(told: str, fault: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings({"SONONODE_AUDIT__SYSLOG": told})
    assert fault in str(caught.value)


@pytest.mark.parametrize(
    ("told", "fault"),
    [
        ('{"client_id": "x"}', "auth.oidc.issuer"),
        ('{"issuer": "http://idp.test"}', "auth.oidc.issuer: is an https"),
        ('{"issuer": "https://idp.test"}', "auth.oidc.client_id"),
        ('{"scope": "profile"}', "auth.oidc.scope"),
        ('{"roles": []}', "auth.oidc.roles: is empty"),
        ('{"roles": ["EHR=ehr"]}', "auth.oidc.roles: value=role"),
        ('{"roles": ["doctor"]}', "auth.oidc.roles: value=role"),
        ('{"client_secret_file": "a", "private_key_file": "b"}', "not both"),
        ('{"claim": "x"}', "auth.oidc.claim: is set, but it is unknown"),
        ("{", "auth.oidc"),
    ],
)
def test_a_wrong_sign_on_is_named(told: str, fault: str) -> None:
    right = {"issuer": "https://idp.test", "client_id": "n", "roles": ["D=radiologist"]}
    whole = told
    if "issuer" not in told and "client_id" not in told and told != "{":
        whole = json.dumps(right | json.loads(told))
    with pytest.raises(SettingsError) as raised:
        load_settings({"SONONODE_AUTH__OIDC": whole})
    assert fault in str(raised.value)


def test_a_group_of_a_directory_gives_a_role() -> None:
    oidc = {
        "issuer": "https://idp.test",
        "client_id": "n",
        "roles": ["CN=US,OU=Radiology=radiologist", "IT = administrator"],
    }
    settings = load_settings({"SONONODE_AUTH__OIDC": json.dumps(oidc)})
    assert settings.auth.oidc.role_of == {
        "CN=US,OU=Radiology": "radiologist",
        "IT": "administrator",
    }
    with pytest.raises(SettingsError, match=r"auth\.local_logins"):
        load_settings({"SONONODE_AUTH__LOCAL_LOGINS": ""})
