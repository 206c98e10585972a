"""The relay's key file, and what is derived from it.

A sealed value is bound to its table, row and column: moved elsewhere it does
not open. Whoever has the database without the key file has random bytes.
"""

import hashlib
import hmac
import os
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from node.domain.errors import ErrorKind, NodeError

KEY_SIZE = 32
_NONCE_SIZE = 12


class RelaySealer:
    """Seals values with AES-256-GCM and hashes openids with HMAC-SHA256."""

    def __init__(self, root: bytes) -> None:
        if len(root) != KEY_SIZE:
            raise NodeError(
                f"relay.key_file: {KEY_SIZE} bytes expected", ErrorKind.SETTING
            )
        self._cipher = AESGCM(_derive(root, b"relay values"))
        self._openid_key = _derive(root, b"relay openid index")

    @classmethod
    def from_file(cls, path: Path) -> "RelaySealer":
        """Return the sealer of `path`. Raises NodeError SETTING when it is missing."""
        try:
            return cls(path.read_bytes())
        except OSError:
            raise NodeError(
                f"relay.key_file: {path} cannot be read; make one with keys init",
                ErrorKind.SETTING,
            ) from None

    def seal(self, plaintext: bytes, *, table: str, row: str, column: str) -> bytes:
        nonce = os.urandom(_NONCE_SIZE)
        return nonce + self._cipher.encrypt(
            nonce, plaintext, _bound(table, row, column)
        )

    def open(self, sealed: bytes, *, table: str, row: str, column: str) -> bytes:
        """Return what was sealed. Raises NodeError INTEGRITY for anything else."""
        try:
            return self._cipher.decrypt(
                sealed[:_NONCE_SIZE], sealed[_NONCE_SIZE:], _bound(table, row, column)
            )
        except (InvalidTag, ValueError):
            raise NodeError(
                f"a value of {table}.{column} is not what the relay stored",
                ErrorKind.INTEGRITY,
            ) from None

    def openid_mac(self, openid: str) -> bytes:
        return hmac.digest(self._openid_key, openid.encode(), hashlib.sha256)


def create_key_file(path: Path) -> None:
    """Write a new key that only its owner may read. Never overwrites one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400)
    with os.fdopen(descriptor, "wb") as file:
        file.write(os.urandom(KEY_SIZE))
        file.flush()
        os.fsync(file.fileno())


def _derive(root: bytes, purpose: bytes) -> bytes:
    return HKDF(hashes.SHA256(), KEY_SIZE, None, purpose).derive(root)


def _bound(table: str, row: str, column: str) -> bytes:
    return "\0".join(("relay", table, row, column)).encode()
