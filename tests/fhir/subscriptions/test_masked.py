"""What the relay is sent holds nothing that identifies her, whatever she is called."""

from datetime import date
from uuid import UUID

from hypothesis import given, settings
from hypothesis import strategies as st

from fhir.content import concepts
from fhir.content.masked import to_masked_report
from fhir.encoding.outcome import CONTENT_TYPE
from fhir.encoding.wire import to_bytes
from fhir.subscriptions.notification import notification, written
from node.domain.disclosure import patient_report
from node.store.subscriptions import Subscription
from node.store.topic_events import Event
from tests.factories import NOW, make_disclosure, make_patient, make_signed
from tests.fhir.rig import TEXTS, make_settings
from wechat.relay.masked import read_notification

_NAMES = st.text(
    alphabet=st.one_of(
        st.characters(min_codepoint=0x4E00, max_codepoint=0x9FA5),
        st.characters(categories=["Lu"], max_codepoint=0x5A),
    ),
    min_size=2,
    max_size=5,
)
_TOPIC = "https://fhir.sononode.org/SubscriptionTopic/report-released"
_RELAY = Subscription(
    UUID(int=7), _TOPIC, "active", "http://relay/hook", (), "full-resource", 9, None
)


@settings(max_examples=60)
@given(
    family=_NAMES,
    given_name=_NAMES,
    id_number=st.from_regex(r"[1-9][0-9]{16}[0-9X]", fullmatch=True),
    phone=st.from_regex(r"1[3-9][0-9]{9}", fullmatch=True),
    category=st.sampled_from(["1", "2", "3", "4B", "5"]),
    told=st.booleans(),
)
def test_a_notification_for_the_relay_names_nobody(
    family: str,
    given_name: str,
    id_number: str,
    phone: str,
    category: str,
    told: bool,
) -> None:
    name = family + given_name
    words = f"{name}, {id_number}, {phone}: {family} {given_name}, MRN-0042"
    report = make_signed(category, impression=words, patient_summary=words)
    if told:
        report = report.disclose(make_disclosure())
    patient = make_patient(
        name=f"{family}^{given_name}", id_number=id_number, phone=phone
    )
    masked = to_masked_report(
        patient_report(
            report,
            patient,
            examined_on=date(2026, 11, 20),
            handle="h" * 22,
            patient_handle="p" * 22,
            department_phone="010-0000",
            texts=TEXTS,
        )
    )
    assert concepts.REDACTED in masked["meta"]["security"]
    event = Event(1, NOW, f"DiagnosticReport/{'h' * 22}", to_bytes(masked))
    node = make_settings("http://node/fhir")
    body = written(
        notification(node, _RELAY, "event-notification", [event]), CONTENT_TYPE
    )
    text = body.decode()
    for secret in (name, given_name * 2, id_number, phone, "MRN-0042", "1979-03"):
        assert secret not in text
    assert report.study_instance_uid not in text
    assert str(report.id) not in text
    ((number, taken),) = read_notification(body).events  # nor does the relay object
    assert (number, taken.handle) == (1, "h" * 22)
