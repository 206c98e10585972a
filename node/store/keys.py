"""The key hierarchy: root key file -> domain keys -> data keys -> bodies and objects.

Every seal is AES-256-GCM under a fresh 96-bit nonce; its associated data binds
tenant, table, row, column and key, so that no ciphertext is valid anywhere else.
A patient's data key exists once; destroying it erases her everywhere, backups
included. Blind indexes are HMACs under keys that never stand beside the data.
"""

import base64
import hashlib
import hmac
import os
import unicodedata
from collections import OrderedDict
from dataclasses import dataclass
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


@dataclass(frozen=True)
class RootKey:
    """The key above all others; its id says which one wrapped a domain key."""

    secret: bytes

    @property
    def id(self) -> str:
        """Return a name for the key that tells nothing about it."""
        return hashlib.sha256(b"sononode root key" + self.secret).hexdigest()[:16]


def create_root_key(path: Path) -> None:
    """Write a new root key with mode 0400; CONFLICT when there is one already."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400)
    except FileExistsError:
        raise NodeError(
            f"{path}: there is a key already; it is never overwritten",
            ErrorKind.CONFLICT,
        ) from None
    with os.fdopen(descriptor, "wb") as file:
        file.write(base64.b64encode(os.urandom(KEY_BYTES)) + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_root_key(path: Path) -> RootKey:
    """Return the root key of `path`; SETTING names the file and the mend."""
    try:
        secret = base64.b64decode(path.read_bytes(), validate=False)
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
    except ValueError:
        secret = b""
    if len(secret) != KEY_BYTES:
        raise NodeError(
            f"keys.root_file: {path} does not hold a key; restore it from its copy",
            ErrorKind.SETTING,
        )
    return RootKey(secret)


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

    def __init__(self, database: "Database", root: RootKey, root_path: Path) -> None:
        self._database = database
        self._root = root
        self._root_path = root_path
        self._domain_keys: dict[UUID, bytes] = {}
        self._current: dict[str, UUID] = {}
        self._patients: OrderedDict[UUID, Sealer] = OrderedDict()
        self._blind_keys: dict[str, bytes] = {}
        self.node: Sealer
        self._index: bytes

    @classmethod
    async def open(cls, database: "Database", root_key_path: Path) -> "KeyRing":
        """Return the ring; makes domain keys in an empty database.

        SETTING when the root key is missing or is not the one that this database
        was written with.
        """
        ring = cls(database, read_root_key(root_key_path), root_key_path)
        async with database.transaction() as tx:
            await tx.execute("select pg_advisory_xact_lock(hashtext('domain_keys'))")
            await ring._load_domains(tx)
            for domain in DOMAINS:
                if domain not in ring._current:
                    await ring._create_domain(tx, domain)
            ring.node = await ring._data_key(tx, "node", _NOBODY)
            index = await ring._data_key(tx, "index", _NOBODY)
            ring._index = index.blob_key
        return ring

    async def patient(self, tx: "Transaction", patient_id: UUID) -> Sealer:
        """Return the patient's sealer, made on first use; GONE after shredding."""
        cached = self._patients.get(patient_id)
        if cached is not None:
            self._patients.move_to_end(patient_id)
            return cached
        sealer = await self._data_key(tx, "patient", patient_id)
        # A key that a rolled-back transaction made must not be remembered.
        if await tx.fetchval(
            "select xmin::text::bigint <> (pg_current_xact_id()::text::bigint"
            " & 4294967295) from data_keys where domain = 'patient' and subject = $1",
            patient_id,
        ):
            self._patients[patient_id] = sealer
            if len(self._patients) > _CACHED_KEYS:
                self._patients.popitem(last=False)
        return sealer

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

    async def rotate(self, tx: "Transaction") -> int:
        """Make a new root key and new domain keys; return how many keys were wrapped.

        The new root key lies in `<file>.new` until the transaction is committed and
        the ring is opened again; the old one stays as `<file>.old`. Bodies and
        blind indexes stay as they are: data keys do not change.
        """
        new_root = RootKey(os.urandom(KEY_BYTES))
        await tx.execute("select pg_advisory_xact_lock(hashtext('domain_keys'))")
        rows = await tx.fetch(
            "select key_id, domain, domain_key_id, wrapped from data_keys"
            " where wrapped is not null for update"
        )
        plain = {row["key_id"]: self._unwrap_data(row) for row in rows}
        await tx.execute("update domain_keys set current = false")
        # The file first: a root key that is lost is worse than one too many. It
        # takes the old one's place when the database is seen to name it.
        self._write_next_root(new_root)
        self._root = new_root
        for domain in DOMAINS:
            await self._create_domain(tx, domain)
        for row in rows:
            parent = self._current[row["domain"]]
            wrapped = _wrap(
                self._domain_keys[parent], plain[row["key_id"]], row["key_id"]
            )
            await tx.execute(
                "update data_keys set domain_key_id = $2, wrapped = $3"
                " where key_id = $1",
                row["key_id"],
                parent,
                wrapped,
            )
        await tx.execute("delete from domain_keys where not current")
        return len(rows) + len(DOMAINS)

    async def verify(self, tx: "Transaction") -> int:
        """Open every wrapped key once; return how many; INTEGRITY names the first."""
        rows = await tx.fetch(
            "select key_id, domain, domain_key_id, wrapped from data_keys"
            " where wrapped is not null"
        )
        await self._load_domains(tx)
        for row in rows:
            self._unwrap_data(row)
        return len(rows) + len(self._domain_keys)

    async def shred(self, tx: "Transaction", patient_id: UUID) -> None:
        """Destroy a patient's key: nothing of her can be read from now on."""
        await tx.execute(
            "update data_keys set wrapped = null, domain_key_id = null,"
            " shredded_at = now() where domain = 'patient' and subject = $1",
            patient_id,
        )
        await tx.execute("select pg_notify('key_shredded', $1)", str(patient_id))
        self._patients.pop(patient_id, None)

    async def forget_shredded(self) -> None:
        """Drop cached keys as soon as any process shreds them."""

        def forget(patient_id: str) -> None:
            if patient_id:
                self._patients.pop(UUID(patient_id), None)
            else:  # notifications may have been missed
                self._patients.clear()

        await self._database.listen("key_shredded", forget)

    # --- inside ----------------------------------------------------------------

    async def _load_domains(self, tx: "Transaction") -> None:
        rows = await tx.fetch("select * from domain_keys")
        for row in rows:
            if row["root_key_id"] != self._root.id:
                self._take_up_rotation(row["root_key_id"])
            if row["root_key_id"] != self._root.id:
                raise NodeError(
                    f"keys.root_file: {self._root_path} is not the key of this"
                    " database; restore the right one from its copy",
                    ErrorKind.SETTING,
                )
            key_id = row["key_id"]
            self._domain_keys[key_id] = _unwrap(
                self._root.secret, row["wrapped"], key_id
            )
            if row["current"]:
                self._current[row["domain"]] = key_id

    async def _create_domain(self, tx: "Transaction", domain: str) -> None:
        key_id, key = uuid4(), os.urandom(KEY_BYTES)
        await tx.execute(
            "insert into domain_keys (key_id, domain, root_key_id, wrapped)"
            " values ($1, $2, $3, $4)",
            key_id,
            domain,
            self._root.id,
            _wrap(self._root.secret, key, key_id),
        )
        self._domain_keys[key_id] = key
        self._current[domain] = key_id

    async def _data_key(self, tx: "Transaction", domain: str, subject: UUID) -> Sealer:
        key_id, key = uuid4(), os.urandom(KEY_BYTES)
        parent = self._current[domain]
        find = (
            "select key_id, domain_key_id, wrapped from data_keys"
            " where domain = $1 and subject = $2"
        )
        row = await tx.fetchrow(find, domain, subject)
        if row is None:
            await tx.execute(
                "insert into data_keys (key_id, domain, subject, domain_key_id, wrapped)"
                " values ($1, $2, $3, $4, $5) on conflict (domain, subject) do nothing",
                key_id,
                domain,
                subject,
                parent,
                _wrap(self._domain_keys[parent], key, key_id),
            )
            row = await tx.fetchrow(find, domain, subject)
        if row is None or row["wrapped"] is None:
            raise NodeError("this patient's data was erased", ErrorKind.GONE)
        if row["domain_key_id"] not in self._domain_keys:
            # Another process has rotated the keys since we read them.
            self._root = read_root_key(self._root_path)
            await self._load_domains(tx)
        return Sealer(row["key_id"], self._unwrap_data(row))

    def _unwrap_data(self, row: "asyncpg.Record") -> bytes:
        parent = self._domain_keys.get(row["domain_key_id"])
        if parent is None:
            raise NodeError(
                "a key is wrapped by a key that is missing", ErrorKind.INTEGRITY
            )
        return _unwrap(parent, row["wrapped"], row["key_id"])

    def _next_root_path(self) -> Path:
        return self._root_path.with_name(f"{self._root_path.name}.new")

    def _write_next_root(self, root: RootKey) -> None:
        self._next_root_path().unlink(missing_ok=True)
        descriptor = os.open(
            self._next_root_path(), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400
        )
        with os.fdopen(descriptor, "wb") as file:
            file.write(base64.b64encode(root.secret) + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def _take_up_rotation(self, root_key_id: str) -> None:
        """Put a rotated root key in its place once the database names it."""
        if not self._next_root_path().exists():
            return
        fresh = read_root_key(self._next_root_path())
        if fresh.id != root_key_id:
            return
        old = self._root_path.with_name(f"{self._root_path.name}.old")
        os.replace(self._root_path, old)
        os.replace(self._next_root_path(), self._root_path)
        self._root = fresh


def _wrap(wrapping: bytes, key: bytes, key_id: UUID) -> bytes:
    nonce = os.urandom(NONCE_BYTES)
    return nonce + AESGCM(wrapping).encrypt(nonce, key, key_id.bytes)


def _unwrap(wrapping: bytes, wrapped: bytes, key_id: UUID) -> bytes:
    nonce, sealed = bytes(wrapped[:NONCE_BYTES]), bytes(wrapped[NONCE_BYTES:])
    try:
        return AESGCM(wrapping).decrypt(nonce, sealed, key_id.bytes)
    except InvalidTag:
        raise NodeError(
            "a wrapped key does not open; keys.root_file may be the wrong one",
            ErrorKind.INTEGRITY,
        ) from None
