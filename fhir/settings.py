"""What an installation may set about its FHIR side; filled in by `node.parts`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from fhir.content.mapping import Systems
from fhir.content.site import Site
from fhir.subscriptions.endpoints import Endpoints
from fhir.subscriptions.topics import Topic
from node.domain import lexicon
from node.domain.disclosure import TierText
from node.domain.errors import ErrorKind, NodeError


@dataclass(frozen=True)
class FhirSettings:
    """All that the FHIR side needs to know about the site.

    `base_url` ends in /fhir and is what other systems see. `topics` is what
    can be subscribed to, by address. `endpoints` are the hosts that a Subscription
    may call: nothing else on the hospital's network can be reached through us; with
    a `hook_secret` the calls of those are signed who have no secret of their own, and
    one that was changed signs too for `hook_secret_overlap`. `texts` has one entry for
    every BI-RADS category. `offset` is the site's from UTC: worklists have its time.
    `repositories` are the names of those to which signed reports are sent.
    """

    base_url: str
    systems: Systems
    site: Site
    texts: Mapping[str, TierText]
    department_phone: str = ""
    page_size: int = 50
    topics: Mapping[str, Topic] = field(default_factory=dict)
    endpoints: Endpoints = field(default_factory=Endpoints)
    hook_secret: bytes = field(default=b"", repr=False)
    hook_secret_overlap: timedelta = timedelta(hours=24)
    relay_url: str = ""
    relay_secret: bytes = field(default=b"", repr=False)
    give_up_after_s: float = 72 * 3600
    offset: timedelta = timedelta(hours=8)
    export_keep: timedelta = timedelta(hours=24)
    exports_at_once: int = 2
    repositories: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        missing = sorted(set(lexicon.CATEGORIES) - set(self.texts))
        if missing:
            raise NodeError(
                f"advice: no patient text for BI-RADS {', '.join(missing)}",
                ErrorKind.SETTING,
            )

    @property
    def relay_endpoint(self) -> str:
        """Return where the relay takes notifications."""
        return f"{self.relay_url.rstrip('/')}/hook"
