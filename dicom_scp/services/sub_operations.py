"""C-STORE sub-operations with data sets that stream (PS3.4 C.4.2, C.4.3; PS3.7 9.1.1).

pynetdicom would decode and encode every data set anew and queue all of it at once. Here
its bytes go out as they are read, a few PDUs ahead of the network, on an association
that we asked for (C-MOVE) or on the one of the peer (C-GET).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, cast

from pynetdicom.association import Association
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.pdu_primitives import P_DATA

from dicom_scp.services.transcode import Encoded
from node.domain.errors import ErrorKind, NodeError

PDUS_AHEAD: Final = 16
MOST_PDU: Final = 131_072  # for a peer that takes PDUs of any length
PDV_HEADER: Final = 6
LOW_PRIORITY: Final = 2
_LOOK_S: Final = 0.1
_LAST, _MORE = b"\x02", b"\x00"


class Broken(NodeError):
    """The association is gone, or its peer does not answer any more."""

    def __init__(self, words: str) -> None:
        super().__init__(words, ErrorKind.UNAVAILABLE)


@dataclass(frozen=True)
class Originator:
    """Who asked for a C-MOVE, for the receiver of its sub-operations."""

    ae_title: str
    message_id: int


class StoreChannel:
    """Sends instances on one association, one after the other. Blocks.

    Only one thread uses it. `answer_s` is how long a peer may take to answer, or to
    take anything of a data set.
    """

    def __init__(self, association: Association, *, answer_s: float = 60.0) -> None:
        self._association = association
        self._answer_s = answer_s
        self._message_id = 0
        association.dimse_timeout = answer_s
        if association.is_requestor:
            # pynetdicom's own loop must not take the answers.
            association._reactor_checkpoint.clear()
            while not association._is_paused and association.is_alive():
                time.sleep(0.001)

    def accepted(self, sop_class_uid: str) -> dict[str, int]:
        """Return the contexts in which we may store a class, by transfer syntax."""
        return {
            str(context.transfer_syntax[0]): cast(int, context.context_id)
            for context in self._association.accepted_contexts
            if context.abstract_syntax == sop_class_uid and context.as_scu
        }

    def store(
        self,
        sop_class_uid: str,
        sop_instance_uid: str,
        encoded: Encoded,
        originator: Originator | None = None,
    ) -> int:
        """Send one instance; return the status of the C-STORE-RSP (PS3.4 B.2.3).

        Raises Broken; what reading the chunks raises leaves a message unfinished, so
        the association is aborted then.
        """
        context_id = self.accepted(sop_class_uid)[encoded.transfer_syntax_uid]
        self._message_id = self._message_id % 0xFFFF + 1
        try:
            self._send_command(context_id, sop_class_uid, sop_instance_uid, originator)
            for piece, last in _fragments(encoded.chunks, self._room()):
                self._send(context_id, (_LAST if last else _MORE) + piece)
        except BaseException:
            self._association.abort()
            raise
        return self._answer()

    def close(self) -> None:
        """Release the association that we asked for."""
        if self._association.is_requestor:
            self._association._reactor_checkpoint.set()
            if self._association.is_established:
                self._association.release()

    def _room(self) -> int:
        """Return how many bytes of a data set fit in a PDU; an even number."""
        most = self._association.dimse.maximum_pdu_size or MOST_PDU
        return max(2, min(most, MOST_PDU) - PDV_HEADER) // 2 * 2

    def _send_command(
        self,
        context_id: int,
        sop_class_uid: str,
        sop_instance_uid: str,
        originator: Originator | None,
    ) -> None:
        request = C_STORE()
        request.MessageID = self._message_id
        request.AffectedSOPClassUID = sop_class_uid
        request.AffectedSOPInstanceUID = sop_instance_uid
        request.Priority = LOW_PRIORITY
        if originator is not None:
            request.MoveOriginatorApplicationEntityTitle = originator.ae_title
            request.MoveOriginatorMessageID = originator.message_id
        message: Any = C_STORE_RQ()
        message.primitive_to_message(request)
        message.command_set.CommandDataSetType = 0x0001  # a data set follows
        message._set_command_group_length()
        most = self._association.dimse.maximum_pdu_size or MOST_PDU
        for primitive in message.encode_msg(context_id, most):
            self._put(primitive)

    def _send(self, context_id: int, value: bytes) -> None:
        primitive: Any = P_DATA()
        primitive.presentation_data_value_list = [[context_id, value]]
        self._put(primitive)

    def _put(self, primitive: P_DATA) -> None:
        """Hand over a PDU once few wait before it."""
        waiting = self._association.dul.to_provider_queue
        end = time.monotonic() + self._answer_s
        with waiting.not_full:  # told of by every PDU that leaves
            before = waiting._qsize()
            while waiting._qsize() >= PDUS_AHEAD:
                self._require_peer()
                waiting.not_full.wait(_LOOK_S)
                if waiting._qsize() < before:
                    before, end = waiting._qsize(), time.monotonic() + self._answer_s
                if time.monotonic() > end:
                    raise Broken("the receiver takes nothing any more")
        self._require_peer()
        self._association.dul.send_pdu(primitive)

    def _require_peer(self) -> None:
        association = self._association
        if not association.is_established or not association.dul.is_alive():
            raise Broken("the receiver broke the association")

    def _answer(self) -> int:
        _, response = self._association.dimse.get_msg(block=True)
        if response is None:
            if self._association.is_established:
                self._association.abort()
            raise Broken("the receiver did not confirm in time or went away")
        ours = (
            isinstance(response, C_STORE)
            and response.is_valid_response
            and response.MessageIDBeingRespondedTo == self._message_id
        )
        if not ours:
            self._association.abort()
            raise Broken("the receiver answered something else")
        return int(cast(int, cast(C_STORE, response).Status))


def _fragments(chunks: Iterator[bytes], size: int) -> Iterator[tuple[bytes, bool]]:
    """Yield pieces of `size` bytes, and with each whether it is the last one."""
    held = bytearray()
    for chunk in chunks:
        held += chunk
        at = 0
        while len(held) - at > size:  # one piece stays: it may be the last
            yield bytes(held[at : at + size]), False
            at += size
        del held[:at]
    yield bytes(held), True
