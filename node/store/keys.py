"""The key hierarchy: root key file -> domain keys -> data keys -> bodies and objects.

Every seal is AES-256-GCM under a fresh 96-bit nonce; its associated data binds
tenant, table, row, column and key, so that no ciphertext is valid anywhere else.
A patient's data key exists once; destroying it erases her everywhere, and the
rotation that follows makes the wrapped copy in older backups useless too. Blind
indexes are HMACs under keys that never stand beside the data.

Several processes hold a ring at the same time. Whoever wraps a key takes an
advisory lock shared, whoever rotates takes it alone; a process that meets a key
wrapped by a domain key that it does not know reads the root key file again.
"""

import base64
import hashlib
import hmac
import os
import stat
import unicodedata
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from node.domain.errors import ErrorKind, NodeError

if TYPE_CHECKING:
    import asyncpg

    from node.store.database import Database, Transaction

TENANT = "default"
KEY_BYTES = 32
NONCE_BYTES = 12
BLIND_BYTES = 16
DOMAINS = ("patient", "node", "index")
_NOBODY = UUID(int=0)
_CACHED_KEYS = 4096
_FORMAT = b"\x01"
_WRAPPING_LOCK = 0x736F6E6F_00000002  # "sono", 2


@dataclass(frozen=True)
class RootKey:
    """The key above all others; its id says which one wrapped a domain key."""

    secret: bytes = field(repr=False)

    @property
    def id(self) -> str:
        """Return a name for the key that tells nothing about it."""
        return hashlib.sha256(b"sononode root key" + self.secret).hexdigest()[:16]


def create_root_key(path: Path) -> None:
    """Write a new root key with mode 0400; CONFLICT when there is one already."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if path.exists():
        raise NodeError(
            f"{path}: there is a key already; it is never overwritten",
            ErrorKind.CONFLICT,
        )
    fresh = _write_beside(path, [RootKey(os.urandom(KEY_BYTES))])
    try:
        os.link(fresh, path)  # unlike a rename this fails when somebody was faster
    except FileExistsError:
        raise NodeError(
            f"{path}: there is a key already; it is never overwritten",
            ErrorKind.CONFLICT,
        ) from None
    finally:
        fresh.unlink()
    _fsync_directory(path.parent)


def read_root_keys(path: Path) -> list[RootKey]:
    """Return the root keys of `path`, newest first; SETTING names file and mend.

    There are two only after a rotation that was cut short.
    """
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        lines = path.read_bytes().split()
    except FileNotFoundError:
        raise NodeError(
            f"keys.root_file: {path} is missing; restore it from its copy, or run"
            " `python -m node keys init` for a new installation",
            ErrorKind.SETTING,
        ) from None
    except OSError as error:
        raise NodeError(
            f"keys.root_file: {path} cannot be read ({error.strerror})",
            ErrorKind.SETTING,
        ) from None
    if mode & 0o027:
        raise NodeError(
            f"keys.root_file: {path} has mode {mode:04o}; others could use it;"
            f" run `chmod 0400 {path}`",
            ErrorKind.SETTING,
        )
    try:
        secrets = [base64.b64decode(line, validate=True) for line in lines]
    except ValueError:
        secrets = []
    if not secrets or any(len(secret) != KEY_BYTES for secret in secrets):
        raise NodeError(
            f"keys.root_file: {path} does not hold a key; restore it from its copy",
            ErrorKind.SETTING,
        )
    return [RootKey(secret) for secret in secrets]


class Sealer:
    """Seals and opens bodies with one data key."""

    def __init__(self, key_id: UUID, key: bytes) -> None:
        self.key_id = key_id
        self._key = key
        self._cipher = AESGCM(key)

    @property
    def blob_key(self) -> bytes:
        """Return the 32 bytes from which object keys of this subject are derived."""
        return HKDF(SHA256(), KEY_BYTES, None, b"sononode blob key").derive(self._key)

    def seal(self, plaintext: bytes, *, table: str, row: str, column: str) -> bytes:
        """Return `plaintext` sealed for exactly this place."""
        nonce = os.urandom(NONCE_BYTES)
        sealed = self._cipher.encrypt(nonce, plaintext, self._place(table, row, column))
        return _FORMAT + nonce + sealed

    def open(self, ciphertext: bytes, *, table: str, row: str, column: str) -> bytes:
        """Return what was sealed here; INTEGRITY when it was changed or moved."""
        body = bytes(ciphertext)
        nonce, sealed = body[1 : 1 + NONCE_BYTES], body[1 + NONCE_BYTES :]
        try:
            if body[:1] != _FORMAT:
                raise InvalidTag
            return self._cipher.decrypt(nonce, sealed, self._place(table, row, column))
        except (InvalidTag, ValueError):
            raise NodeError(
                f"a sealed body in {table}.{column} is not what was written there",
                ErrorKind.INTEGRITY,
            ) from None

    def _place(self, table: str, row: str, column: str) -> bytes:
        parts = ("1", TENANT, table, column, row, self.key_id.hex)
        return "\x1f".join(parts).encode()


class KeyRing:
    """All keys of an installation; data keys are unwrapped when first needed."""

    def __init__(self, database: "Database", root_path: Path) -> None:
        self._database = database
        self._root_path = root_path
        self._domain_keys: dict[UUID, bytes] = {}
        self._current: dict[str, UUID] = {}
        self._patients: OrderedDict[UUID, Sealer] = OrderedDict()
        self._blind_keys: dict[str, bytes] = {}
        self._told_of_shredding: list[Callable[[UUID | None], None]] = []
        self.node: Sealer
        self._index: bytes

    @classmethod
    async def open(cls, database: "Database", root_key_path: Path) -> "KeyRing":
        """Return the ring; makes domain keys in an empty database.

        SETTING when the root key is missing or is not the one that this database
        was written with.
        """
        ring = cls(database, root_key_path)
        async with database.transaction() as tx:
            await tx.execute("select pg_advisory_xact_lock($1)", _WRAPPING_LOCK)
            await ring._load_domains(tx)
            if not ring._current:
                await ring._create_domains(tx, read_root_keys(root_key_path)[0])
            ring.node, _ = await ring._data_key(tx, "node", _NOBODY)
            index, _ = await ring._data_key(tx, "index", _NOBODY)
            ring._index = index.blob_key
        return ring

    async def patient(self, tx: "Transaction", patient_id: UUID) -> Sealer:
        """Return the patient's sealer, made on first use; GONE after shredding."""
        cached = self._patients.get(patient_id)
        if cached is not None:
            self._patients.move_to_end(patient_id)
            return cached
        sealer, settled = await self._data_key(tx, "patient", patient_id)
        if settled:
            self._patients[patient_id] = sealer
            if len(self._patients) > _CACHED_KEYS:
                self._patients.popitem(last=False)
        return sealer

    async def have_at_hand(
        self, tx: "Transaction", patient_ids: Sequence[UUID]
    ) -> None:
        """Bring the sealers of many patients to hand in one query."""
        missing = [one for one in patient_ids if one not in self._patients]
        if not missing:
            return
        rows = await tx.fetch(
            "select key_id, subject, domain_key_id, wrapped from data_keys"
            " where domain = 'patient' and subject = any($1) and wrapped is not null"
            " and created_at < now()",
            missing[:_CACHED_KEYS],
        )
        for row in rows:
            if row["domain_key_id"] in self._domain_keys:
                sealer = Sealer(row["key_id"], self._unwrap_data(row))
                self._patients[row["subject"]] = sealer
        while len(self._patients) > _CACHED_KEYS:
            self._patients.popitem(last=False)

    async def own(self, tx: "Transaction", subject: UUID) -> Sealer:
        """Return a sealer of the node for one thing that will go, made on first use.

        GONE after its key was destroyed.
        """
        return (await self._data_key(tx, "node", subject))[0]

    def patient_at_hand(self, patient_id: UUID) -> Sealer | None:
        """Return the patient's sealer if it was used lately; any thread may ask."""
        return self._patients.get(patient_id)

    def blind(self, field: str, value: str) -> bytes:
        """Return the blind index of `value` in `field`; equal values, equal bytes.

        Values are compared as NFKC, case-folded, without surrounding blanks.
        """
        key = self._blind_keys.get(field)
        if key is None:
            key = hmac.digest(self._index, field.encode(), "sha256")
            self._blind_keys[field] = key
        text = unicodedata.normalize("NFKC", value).casefold().strip()
        return hmac.digest(key, text.encode(), "sha256")[:BLIND_BYTES]

    async def rotate(self) -> int:
        """Make a new root key and new domain keys; return how many keys were wrapped.

        Data keys stay, and so do bodies, objects and blind indexes. The root key
        file holds the new key and the old one until the new wrapping is committed,
        so that a crash at any moment leaves an installation that opens.
        """
        kept = read_root_keys(self._root_path)
        new_root = RootKey(os.urandom(KEY_BYTES))
        async with self._database.transaction() as tx:
            await tx.execute("select pg_advisory_xact_lock($1)", _WRAPPING_LOCK)
            await self._load_domains(tx)
            _replace_root_keys(self._root_path, [new_root, *kept])
            count = await self._wrap_anew(tx, new_root)
        _replace_root_keys(self._root_path, [new_root])
        return count

    async def verify(self) -> int:
        """Open every key once; return how many there are; INTEGRITY names the first.

        SETTING when the root key file still holds a key that rotation replaced.
        """
        async with self._database.transaction() as tx:
            roots = await self._load_domains(tx)
            count = len(self._domain_keys)
            rows = tx.cursor("select * from data_keys where wrapped is not null")
            async for row in rows:
                self._unwrap_data(row)
                count += 1
        if len(roots) > 1:
            raise NodeError(
                f"keys.root_file: {self._root_path} still holds a key that was"
                " replaced; run `python -m node keys rotate`",
                ErrorKind.SETTING,
            )
        return count

    async def tell_destroyed(self, tx: "Transaction", subject: UUID | None) -> None:
        """Have every process forget a key that `tx` destroys; None: all of them."""
        told = "" if subject is None else str(subject)
        await tx.execute("select pg_notify('key_shredded', $1)", told)
        self._forget(subject)

    async def forget_shredded(self) -> None:
        """Drop cached keys as soon as any process shreds them."""

        def forget(patient_id: str) -> None:
            # Without an id, notifications may have been missed.
            self._forget(UUID(patient_id) if patient_id else None)

        await self._database.listen("key_shredded", forget)

    def when_shredded(self, forget: Callable[[UUID | None], None]) -> None:
        """Call `forget(patient_id)` when a key goes; None: it may be anybody's."""
        self._told_of_shredding.append(forget)

    def _forget(self, patient_id: UUID | None) -> None:
        if patient_id is None:
            self._patients.clear()
        else:
            self._patients.pop(patient_id, None)
        for forget in self._told_of_shredding:
            forget(patient_id)

    # --- inside ----------------------------------------------------------------

    async def _load_domains(self, tx: "Transaction") -> list[RootKey]:
        """Read the domain keys, and the root keys that may open them, anew."""
        roots = read_root_keys(self._root_path)
        rows = await tx.fetch("select * from domain_keys")
        if {row["root_key_id"] for row in rows} - {root.id for root in roots}:
            # A rotation may have ended between the two; the file is written first.
            roots = read_root_keys(self._root_path)
            rows = await tx.fetch("select * from domain_keys")
        by_id = {root.id: root for root in roots}
        known: dict[UUID, bytes] = {}
        for row in rows:
            root = by_id.get(row["root_key_id"])
            if root is None:
                raise NodeError(
                    f"keys.root_file: {self._root_path} is not the key of this"
                    " database; restore the right one from its copy",
                    ErrorKind.SETTING,
                )
            known[row["key_id"]] = _unwrap(root.secret, row["wrapped"], row["key_id"])
            if row["current"]:
                self._current[row["domain"]] = row["key_id"]
        self._domain_keys = known
        return roots

    async def _create_domains(self, tx: "Transaction", root: RootKey) -> None:
        for domain in DOMAINS:
            key_id, key = uuid4(), os.urandom(KEY_BYTES)
            await tx.execute(
                "insert into domain_keys (key_id, domain, root_key_id, wrapped)"
                " values ($1, $2, $3, $4)",
                key_id,
                domain,
                root.id,
                _wrap(root.secret, key, key_id),
            )
            self._domain_keys[key_id] = key
            self._current[domain] = key_id

    async def _wrap_anew(self, tx: "Transaction", root: RootKey) -> int:
        rows: Sequence[asyncpg.Record] = await tx.fetch(
            "select * from data_keys where wrapped is not null for update"
        )
        plain = [(row, self._unwrap_data(row)) for row in rows]
        known, current = self._domain_keys, self._current
        self._domain_keys, self._current = dict(known), {}
        try:
            await tx.execute("update domain_keys set current = false")
            await self._create_domains(tx, root)
            parents = [self._current[row["domain"]] for row, _ in plain]
            await tx.execute(
                "update data_keys as kept"
                " set domain_key_id = fresh.parent, wrapped = fresh.wrapped"
                " from unnest($1::uuid[], $2::uuid[], $3::bytea[])"
                " as fresh (key_id, parent, wrapped)"
                " where kept.key_id = fresh.key_id",
                [row["key_id"] for row, _ in plain],
                parents,
                [
                    _wrap(self._domain_keys[parent], key, row["key_id"])
                    for parent, (row, key) in zip(parents, plain, strict=True)
                ],
            )
            await tx.execute("delete from domain_keys where not current")
        except BaseException:
            self._domain_keys, self._current = known, current
            raise
        return len(plain) + len(DOMAINS)

    async def _data_key(
        self, tx: "Transaction", domain: str, subject: UUID
    ) -> tuple[Sealer, bool]:
        """Return the sealer of `subject`, and whether its key outlives `tx`."""
        row = await tx.fetchrow(_FIND, domain, subject)
        if row is None:
            # No rotation may run between the choice of the domain key and commit.
            await tx.execute("select pg_advisory_xact_lock_shared($1)", _WRAPPING_LOCK)
            await self._load_domains(tx)
            key_id, parent = uuid4(), self._current[domain]
            wrapped = _wrap(self._domain_keys[parent], os.urandom(KEY_BYTES), key_id)
            await tx.execute(
                "insert into data_keys"
                " (key_id, domain, subject, domain_key_id, wrapped)"
                " values ($1, $2, $3, $4, $5) on conflict (domain, subject) do nothing",
                key_id,
                domain,
                subject,
                parent,
                wrapped,
            )
            row = await tx.fetchrow(_FIND, domain, subject)
        if row is None or row["wrapped"] is None:
            raise NodeError("this patient's data was erased", ErrorKind.GONE)
        if row["domain_key_id"] not in self._domain_keys:
            # Another process has rotated the keys since we read them.
            await self._load_domains(tx)
            row = await tx.fetchrow(_FIND, domain, subject) or row
        return Sealer(row["key_id"], self._unwrap_data(row)), row["settled"]

    def _unwrap_data(self, row: "asyncpg.Record") -> bytes:
        parent = self._domain_keys.get(row["domain_key_id"])
        if parent is None:
            raise NodeError(
                f"key {row['key_id']} is wrapped by a key that is missing",
                ErrorKind.INTEGRITY,
            )
        return _unwrap(parent, row["wrapped"], row["key_id"])


# A key that this transaction made itself may yet be rolled back and must not be
# remembered; now() is the time at which the transaction began.
_FIND = """
select key_id, domain_key_id, wrapped, created_at < now() as settled
from data_keys where domain = $1 and subject = $2
"""


async def destroy(tx: "Transaction", subject: UUID) -> bool:
    """Destroy the key of a patient, or of a void study; False where there is none.

    Nothing that it sealed can be read from then on; `KeyRing.tell_destroyed` after it.
    """
    return bool(
        await tx.fetchval(
            "update data_keys set wrapped = null, domain_key_id = null,"
            " shredded_at = coalesce(shredded_at, now())"
            " where domain = 'patient' and subject = $1 returning true",
            subject,
        )
    )


def _wrap(wrapping: bytes, key: bytes, key_id: UUID) -> bytes:
    nonce = os.urandom(NONCE_BYTES)
    return nonce + AESGCM(wrapping).encrypt(nonce, key, key_id.bytes)


def _unwrap(wrapping: bytes, wrapped: bytes, key_id: UUID) -> bytes:
    nonce, sealed = bytes(wrapped[:NONCE_BYTES]), bytes(wrapped[NONCE_BYTES:])
    try:
        return AESGCM(wrapping).decrypt(nonce, sealed, key_id.bytes)
    except (InvalidTag, ValueError):
        raise NodeError(
            f"wrapped key {key_id} is not what was written", ErrorKind.INTEGRITY
        ) from None


def _replace_root_keys(path: Path, roots: Sequence[RootKey]) -> None:
    """Put `roots` in the place of the key file, whole or not at all."""
    try:
        os.replace(_write_beside(path, roots), path)
        _fsync_directory(path.parent)
    except OSError as error:
        raise NodeError(
            f"keys.root_file: {path} cannot be replaced ({error.strerror});"
            " rotation needs a folder that can be written",
            ErrorKind.SETTING,
        ) from None


def _write_beside(path: Path, roots: Sequence[RootKey]) -> Path:
    fresh = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400)
    with os.fdopen(descriptor, "wb") as file:
        for root in roots:
            file.write(base64.b64encode(root.secret) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    return fresh


def _fsync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
