"""Erasing a patient: her keys, and what is kept of her without one.

Her bodies stay where they are, in backups too, and nobody can read them.
"""

from typing import TYPE_CHECKING
from uuid import UUID

from node.domain.errors import ErrorKind, NodeError
from node.store import agreement, cases, exports, keys, merges, moves

if TYPE_CHECKING:
    from node.store.database import Database, Transaction
    from node.store.keys import KeyRing


async def shred_patient(database: "Database", ring: "KeyRing", patient_id: UUID) -> int:
    """Erase a patient for good; return how many keys were wrapped anew.

    Rotating afterwards takes the root key away under which older backups hold her
    wrapped key. A restored backup therefore needs the current tables domain_keys
    and data_keys; keep only the newest copy of these two. NOT_FOUND when she never
    had a key.
    """
    async with database.transaction() as tx:
        await shred(tx, ring, patient_id)
    return await ring.rotate()


async def shred(tx: "Transaction", ring: "KeyRing", patient_id: UUID) -> None:
    """Destroy her key, those of every row that was said to be her, and of void studies.

    A study that was filed under the wrong woman goes with either of both.
    """
    if not await keys.destroy(tx, patient_id):
        raise NodeError("this patient has no key here", ErrorKind.NOT_FOUND)
    await merges.take_turn(tx)
    rows, void = await merges.rows_of(tx, patient_id), False
    for row in sorted(rows):
        await keys.destroy(tx, row)
        void = await _forget_row(tx, row) or void
    # Bodies of a void study may be held in memory for whose they were: let go all.
    alone = not void and len(rows) == 1
    await ring.tell_destroyed(tx, patient_id if alone else None)


async def _forget_row(tx: "Transaction", patient_id: UUID) -> bool:
    """Take away what is kept of a row without its key; tell if studies were void.

    That is the vectors and outcomes of her cases, and bulk exports with her in them.
    """
    void = await moves.owners_of(tx, patient_id)
    for owner in void:
        await keys.destroy(tx, owner)
    for other in await moves.named_by(tx, patient_id):
        await exports.forget_patient(tx, other)
    await cases.forget_patient(tx, patient_id)
    await agreement.forget_patient(tx, patient_id)
    await exports.forget_patient(tx, patient_id)
    return bool(void)
