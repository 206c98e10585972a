"""What a subscriber may be told: what its token opened, and still opens today."""

from collections.abc import Sequence
from dataclasses import replace
from uuid import UUID

from fhir.security.access import PERMITS, may_read, permits, require_scope
from fhir.security.scoping import sees
from fhir.subscriptions.topics import Topic
from node.domain.access import Action, Identity
from node.domain.errors import ErrorKind, NodeError
from node.domain.scopes import Scopes, grant, read_scopes
from node.store.resources import NEVER, Stored
from node.store.subscriptions import Owner
from node.store.topic_events import Event


def owner_of(identity: Identity) -> Owner:
    """Return who subscribes, as it is kept beside the subscription."""
    scopes = identity.scopes
    return Owner(
        identity.user_id,
        None if identity.client_id is None else UUID(identity.client_id),
        None if scopes is None else str(scopes),
        None if scopes is None else scopes.patient_id,
        identity.roles,
    )


def caller_of(owner: Owner) -> Identity:
    """Return a subscriber as a caller of today.

    Of its token's scopes those are left that its program is still registered for
    and its roles still permit: less than then, never more.
    """
    roles = Identity(owner.user_id, owner.roles, "")
    if owner.scopes is None:
        return roles
    left = grant(
        read_scopes(owner.scopes),
        read_scopes(owner.registered or ""),
        PERMITS,
        lambda kind, letter: permits(roles, kind, letter),
    )
    scopes = Scopes(left, owner.patient_id, owner.also)
    return Identity(owner.user_id, owner.roles, "", scopes=scopes)


def require_topic(identity: Identity, topic: Topic) -> None:
    """Raise FORBIDDEN when a topic would tell the caller more than it may read.

    A scope for some resources is enough where only these are told; what patients
    see cannot be held against it.
    """
    identity.require(Action.MANAGE_SUBSCRIPTION)
    require_scope(identity, topic.kind, "r", whole=topic.masked)
    if topic.masked:
        return
    identity.require(Action.READ_REPORT)
    if not identity.sees_identity:
        raise NodeError("this topic carries patients' identities", ErrorKind.FORBIDDEN)


def may_hear(owner: Owner | None, topic: Topic, focus: str, body: bytes) -> bool:
    """Tell whether a subscriber may be told this: asked for each event, each time."""
    if owner is None:
        return True
    if owner.shut:
        return False
    return opens(caller_of(owner), topic, focus, body)


def heard(
    owner: Owner | None, topic: Topic | None, events: Sequence[Event]
) -> list[Event]:
    """Return the events that a subscriber may be told, with what may go along.

    Of erased patients, or beyond what is left of the owner's scopes: passed over.
    """
    if topic is None:
        return []
    caller = None if owner is None else caller_of(owner)
    return [
        accompanied(caller, topic, event)
        for event in events
        if event.body and may_hear(owner, topic, event.focus, event.body)
    ]


def accompanied(caller: Identity | None, topic: Topic, event: Event) -> Event:
    """Return an event with what goes along by its topic and may be seen by a caller.

    Each resource is held against the caller for itself; None is the node.
    """
    kept = tuple(
        one
        for one in event.context
        if one.path in topic.along
        and (
            caller is None
            or (may_read(caller, one.stored.resource_type) and sees(caller, one.stored))
        )
    )
    return replace(event, context=kept)


def opens(caller: Identity, topic: Topic, focus: str, body: bytes) -> bool:
    """Tell whether a caller may see an event of a topic."""
    try:
        require_topic(caller, topic)
    except NodeError:
        return False
    if topic.masked or caller.scopes is None:
        return True
    kind, _, resource_id = focus.partition("/")
    return sees(caller, Stored(kind, resource_id, 1, NEVER, None, "PUT", body))


def require_own(caller: Identity, owner: Owner | None) -> None:
    """Raise NOT_FOUND when a program asks about another one's subscription."""
    if caller.scopes is None:
        return
    mine = owner_of(caller)
    if owner is None or (owner.client_id, owner.user_id) != (
        mine.client_id,
        mine.user_id,
    ):
        raise NodeError("there is no such subscription", ErrorKind.NOT_FOUND)
