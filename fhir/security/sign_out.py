"""What is believed of a logout token: OpenID Connect Back-Channel Logout 1.0, 2.6.

The provider tells that somebody has signed out, or was signed out, by a token that it
signs. It comes without a browser: nothing but the token says whom it means.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from fhir.security.assertions import Unproven, time_of
from fhir.security.provider import SKEW, SignOnSettings, audience_of

TYPE = "logout+jwt"
EVENT = "http://schemas.openid.net/event/backchannel-logout"
_LONGEST = 255


@dataclass(frozen=True)
class SignedOut:
    """Whom a logout token names: a subject, one session (`sid`), or both."""

    subject: str | None
    sid: str | None
    jti: str
    expires_at: datetime


def read_logout(
    claims: Mapping[str, Any], settings: SignOnSettings, *, now: datetime
) -> SignedOut:
    """Return whom the claims of a signed token sign out; Unproven when nobody.

    An id_token is none: it has a nonce, or lacks the event. The caller spends `jti`.
    """
    if claims.get("iss") != settings.issuer:
        raise Unproven("iss")
    if settings.client_id not in audience_of(claims):
        raise Unproven("aud")
    expires_at, issued_at = time_of(claims, "exp"), time_of(claims, "iat")
    if expires_at is None or expires_at + SKEW <= now:
        raise Unproven("expired")
    if issued_at is None or issued_at > now + SKEW:
        raise Unproven("iat")
    if "nonce" in claims:
        raise Unproven("nonce")
    events = claims.get("events")
    if not isinstance(events, dict) or not isinstance(events.get(EVENT), dict):
        raise Unproven("events")
    subject, sid = _word(claims, "sub"), _word(claims, "sid")
    if subject is None and sid is None:
        raise Unproven("sub")
    jti = _word(claims, "jti")
    if jti is None:
        raise Unproven("jti")
    return SignedOut(subject, sid, jti, expires_at + SKEW)


def _word(claims: Mapping[str, Any], name: str) -> str | None:
    value = claims.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or not 0 < len(value) <= _LONGEST:
        raise Unproven(name)
    return value
