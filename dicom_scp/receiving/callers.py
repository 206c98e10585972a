"""Remembers who called lately, so that a machine that does not get in can be mended.

A machine shows its operator "failed" and nothing more; the reason is known here.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import structlog

from node.domain.errors import NodeError
from node.store import callers
from node.store.callers import ACCEPTED, Call

if TYPE_CHECKING:
    from dicom_scp.receiving.upper_layer import Acceptor
    from node.store.store import Store

log = structlog.get_logger(__name__)

EVERY: Final = timedelta(seconds=5)
MOST_NOTED: Final = 512


class CallLog:
    """Notes calls, the same one seldom: a busy machine costs nothing.

    `later` runs a coroutine on the store's loop; nobody waits for it.
    """

    def __init__(
        self,
        later: Callable[[Coroutine[Any, Any, object]], None],
        store: Callable[[], Store],
    ) -> None:
        self._later = later
        self._store = store
        self._noted: OrderedDict[tuple[str, ...], datetime] = OrderedDict()
        self._lock = threading.Lock()

    def accepted(self, acceptor: Acceptor) -> None:
        """Note an association and what it asked for in vain."""
        taken = {str(context.abstract_syntax) for context in acceptor.accepted_contexts}
        asked = {str(context.abstract_syntax) for context in acceptor.rejected_contexts}
        self._note(acceptor, acceptor.calling_ae, "", ACCEPTED, asked - taken)

    def rejected(
        self, acceptor: Acceptor, calling_ae: str, called_ae: str, reason: str
    ) -> None:
        """Note an association that was not let in."""
        self._note(acceptor, calling_ae, called_ae, reason, set())

    def _note(
        self,
        acceptor: Acceptor,
        calling_ae: str,
        called_ae: str,
        outcome: str,
        refused: set[str],
    ) -> None:
        at = self._store().clock()
        key = (calling_ae, called_ae, acceptor.address, outcome, *sorted(refused))
        with self._lock:
            last = self._noted.get(key)
            if last is not None and at - last < EVERY:
                return
            self._noted[key] = at
            self._noted.move_to_end(key)
            if len(self._noted) > MOST_NOTED:
                self._noted.popitem(last=False)
        call = Call(
            calling_ae,
            acceptor.address,
            outcome,
            called_ae,
            tuple(sorted(refused)),
            at,
        )
        self._later(self._write(call))

    async def _write(self, call: Call) -> None:
        try:
            async with self._store().db.transaction() as tx:
                await callers.note(tx, call)
        except NodeError as error:
            log.warning("dicom.call_not_noted", error=error.message)
