"""Secrets at rest: BMC passwords and boot tokens are encrypted with keys from a file that only the daemon may read.

Fernet (AES-128-CBC with HMAC-SHA-256, https://github.com/fernet/spec) of the cryptography library; the file holds one key a
line, newest first: the first encrypts, all decrypt.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from sqlalchemy import select, update

from provisiond.errors import ConfigError
from provisiond.inventory.hardware_tables import Task
from provisiond.inventory.release_tables import TemplateSource
from provisiond.inventory.tables import Bmc, Deployment, table

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from provisiond.inventory.store import Store

_ENCRYPTED = (
    (table(Bmc), "secret"),
    (table(Deployment), "secret_seed"),
    (table(TemplateSource), "secret_key"),
    (table(TemplateSource), "secret_hook"),
    (table(Task), "secret"),
)


class SecretBox:
    """Encrypts and decrypts with the keys of ``path``. Its repr shows no key."""

    def __init__(self, path: Path, keys: list[bytes]) -> None:
        self.path = path
        self._keys = keys
        self._fernet = MultiFernet([Fernet(key) for key in keys])

    @classmethod
    def open(cls, path: Path) -> SecretBox:
        """Read the key file, or make it with mode 0600 at the first start.

        Raises ConfigError when others than its owner can read it, or it holds no valid key.
        """
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, [Fernet.generate_key()], replace=False)
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            raise ConfigError(
                f"{path} can be read by others (mode {mode:04o}); it holds the encryption keys: chmod 600 {path}"
            )
        keys = path.read_bytes().split()
        try:
            return cls(path, keys)
        except ValueError:
            raise ConfigError(
                f"{path} holds no valid key; put back the file from your backup, or the stored passwords are lost"
            ) from None

    def encrypt(self, text: str) -> str:
        """``text`` encrypted under the newest key; an empty text stays empty."""
        return self._fernet.encrypt(text.encode()).decode() if text else ""

    def decrypt(self, token: str) -> str:
        """The text again. Raises ConfigError when no key of the file fits."""
        if not token:
            return ""
        try:
            return self._fernet.decrypt(token.encode()).decode()
        except InvalidToken:
            raise ConfigError(
                f"a stored secret cannot be decrypted with the keys in {self.path}; put back the key file it was made with"
            ) from None

    def derived(self, purpose: str) -> list[bytes]:
        """A key of 32 bytes for each of the file's, newest first, that says nothing of it or of those for another ``purpose`` (HKDF, RFC 5869)."""
        return [HKDF(hashes.SHA256(), 32, salt=None, info=purpose.encode()).derive(key) for key in self._keys]

    async def rotate(self, store: Store) -> int:
        """Re-encrypt every secret under a new key and return how many there were.

        The order survives a crash at any point: the new key comes first in the file, beside the old; then every row is
        re-encrypted in one transaction; then the old keys are dropped. A daemon that has the file open keeps working with
        the keys it read, so run this with the daemon stopped (SQLite enforces that by its lock) and restart all on PostgreSQL.
        """
        new = Fernet.generate_key()
        _write(self.path, [new, *self._keys], replace=True)
        both = SecretBox.open(self.path)

        async def work(session: AsyncSession) -> int:
            count = 0
            for rows, column in _ENCRYPTED:
                secrets = await session.execute(select(rows.c.id, rows.c[column]).where(rows.c[column] != ""))
                for row_id, token in secrets.all():
                    fresh = both.encrypt(both.decrypt(token))
                    await session.execute(update(rows).where(rows.c.id == row_id).values({column: fresh}))
                    count += 1
            return count

        count = await store.transact(work)
        _write(self.path, [new], replace=True)
        self._keys = [new]
        self._fernet = MultiFernet([Fernet(new)])
        return count


def _write(path: Path, keys: list[bytes], *, replace: bool) -> None:
    """Write the whole file beside ``path``, flush it to disk, then put it in place at once.

    Without ``replace`` a file that another process made first wins.
    """
    staged = path.with_name(f".{path.name}.{token_hex(8)}")
    descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(b"\n".join(keys) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        if replace:
            staged.replace(path)
        elif not path.exists():
            with suppress(FileExistsError):
                os.link(staged, path)
    finally:
        staged.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
