"""Topics are files: what triggers them, what filters them, what is wrong with one."""

import json
from pathlib import Path
from typing import Any

import pytest

from fhir.search.parameters import index_of
from fhir.subscriptions.topics import (
    AUDIENCE,
    FollowedTopics,
    Indexed,
    read_filters,
    read_topics,
)
from node.domain.errors import ErrorKind, NodeError
from node.followed import Followed
from node.store.resources import NEVER, Stored
from tests.fhir.rig import TOPICS

RELEASE = {path.name: path.read_bytes() for path in TOPICS.glob("*.json")}
BASE = "https://fhir.sononode.org/SubscriptionTopic"


def report(status: str) -> Indexed:
    body = json.dumps({"resourceType": "DiagnosticReport", "status": status})
    stored = Stored("DiagnosticReport", "r", 1, NEVER, None, "PUT", body.encode())
    return stored, index_of(json.loads(body))


def made(**changes: Any) -> dict[str, Any]:
    trigger = {"resource": "DiagnosticReport", **changes.pop("trigger", {})}
    return {
        "resourceType": "SubscriptionTopic",
        "url": "urn:test",
        "title": "test",
        "status": "active",
        "resourceTrigger": [trigger],
        **changes,
    }


def read(told: dict[str, Any]) -> Any:
    return read_topics({"t.json": json.dumps(told).encode()})["urn:test"]


def test_the_topics_of_the_release_can_be_read() -> None:
    topics = read_topics(RELEASE)
    assert {url.rpartition("/")[2] for url in topics} == {
        "report-released",
        "report-signed",
        "report-drafted",
        "imaging-study-available",
        "order-changed",
        "patients-merged",
    }
    assert [t.url for t in topics.values() if t.masked] == [f"{BASE}/report-released"]


@pytest.mark.parametrize("status", ["final", "amended", "entered-in-error"])
def test_a_signed_version_is_no_draft(status: str) -> None:
    topics = read_topics(RELEASE)
    now, before = report(status), report("preliminary")
    assert topics[f"{BASE}/report-signed"].fires(now, before)
    assert not topics[f"{BASE}/report-drafted"].fires(now, before)
    assert topics[f"{BASE}/report-drafted"].fires(before, None)
    assert not topics[f"{BASE}/report-signed"].fires(before, None)


def test_a_trigger_may_ask_for_what_was_before() -> None:
    asked = {
        "previous": "status:not=final",
        "current": "status=final",
        "requireBoth": True,
        "resultForCreate": "test-fails",
    }
    topic = read(made(trigger={"queryCriteria": asked}))
    final, draft = report("final"), report("partial")
    assert topic.fires(final, draft)
    assert not topic.fires(final, final)
    assert not topic.fires(draft, draft)
    assert not topic.fires(final, None)
    either = read(made(trigger={"queryCriteria": asked | {"requireBoth": False}}))
    assert either.fires(draft, draft)


@pytest.mark.parametrize(
    ("told", "element"),
    [
        ({"resourceType": "Basic"}, "resourceType"),
        (made(status="draft"), "status"),
        (made(title=""), "title"),
        (made(eventTrigger=[]), "eventTrigger"),
        (made(resourceTrigger=[]), "resourceTrigger"),
        (made(trigger={"resource": "Observation"}), "resourceTrigger[0].resource"),
        (
            made(trigger={"fhirPathCriteria": "true"}),
            "resourceTrigger[0].fhirPathCriteria",
        ),
        (
            made(trigger={"supportedInteraction": ["delete"]}),
            "resourceTrigger[0].supportedInteraction",
        ),
        (
            made(trigger={"queryCriteria": {"current": "colour=red"}}),
            "resourceTrigger[0].queryCriteria.current",
        ),
        (
            made(trigger={"queryCriteria": {"current": "subject.name=x"}}),
            "resourceTrigger[0].queryCriteria.current",
        ),
        (
            made(trigger={"queryCriteria": {"resultForCreate": "yes"}}),
            "resourceTrigger[0].queryCriteria.resultForCreate",
        ),
        (
            made(canFilterBy=[{"filterParameter": "identifier"}]),
            "canFilterBy[0].filterParameter",
        ),
        (
            made(canFilterBy=[{"filterParameter": "x"}]),
            "canFilterBy[0].filterParameter",
        ),
        (
            made(canFilterBy=[{"filterParameter": "status", "modifier": ["eq"]}]),
            "canFilterBy[0].modifier",
        ),
        (
            made(notificationShape=[{"resource": "ImagingStudy"}]),
            "notificationShape[0].resource",
        ),
        *(
            (
                made(
                    notificationShape=[
                        {"resource": "DiagnosticReport", direction: [path]}
                    ]
                ),
                f"notificationShape[0].{direction}[0]",
            )
            for direction, path in (
                ("include", "DiagnosticReport:status"),
                ("include", "DiagnosticReport:result:Observation"),
                ("include", "Observation:patient"),
                ("include", "DiagnosticReport"),
                ("revInclude", "Observation:patient"),
                ("revInclude", "AuditEvent:entity"),
            )
        ),
        (
            made(
                extension=[{"url": AUDIENCE, "valueCode": "patient"}],
                notificationShape=[
                    {
                        "resource": "DiagnosticReport",
                        "include": ["DiagnosticReport:patient"],
                    }
                ],
            ),
            "extension",
        ),
        (made(extension=[{"url": "urn:x"}]), "extension"),
    ],
)
def test_a_faulty_file_is_named_with_its_element(
    told: dict[str, Any], element: str
) -> None:
    with pytest.raises(NodeError) as caught:
        read(told)
    assert caught.value.kind is ErrorKind.SETTING
    assert caught.value.message.startswith(f"t.json: {element}: ")


def test_two_files_cannot_have_one_address() -> None:
    both = {name: json.dumps(made()).encode() for name in ("a.json", "b.json")}
    with pytest.raises(NodeError, match=r"b\.json: url: another"):
        read_topics(both)


@pytest.mark.parametrize(
    "text",
    [
        "DiagnosticReport?status=final&patient=Patient/1",
        "status=final&patient=Patient/1",
        "DiagnosticReport.status=final&DiagnosticReport.patient=Patient/1",
    ],
)
def test_filters_are_read_in_every_form_of_the_guide(text: str) -> None:
    assert read_filters(text) == ["status=final", "patient=Patient/1"]


def test_topics_are_read_again_when_a_file_changes(tmp_path: Path) -> None:
    def write(name: str, **changes: Any) -> None:
        (tmp_path / name).write_text(json.dumps(made(**changes)))

    def read_all() -> dict[str, Any]:
        return read_topics({p.name: p.read_bytes() for p in tmp_path.glob("*")})

    write("a.json")
    followed = Followed("fhir.topics", lambda: sorted(tmp_path.glob("*")), read_all)
    topics = FollowedTopics(followed)
    assert list(topics) == ["urn:test"]
    write("b.json", url="urn:other", title="another one")
    assert sorted(topics) == ["urn:other", "urn:test"]
    write(
        "b.json", url="urn:other", status="draft"
    )  # what cannot be read changes nothing
    assert (len(topics), topics["urn:other"].title) == (2, "another one")
    (tmp_path / "b.json").unlink()
    assert topics.get("urn:other") is None
    assert topics["urn:test"].title == "test"
