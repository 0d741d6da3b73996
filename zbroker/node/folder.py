"""A node's data folder: its format, its disk's identity, and the lock that keeps two nodes from sharing it.

Owns `lock` and `node.json` at the top of the folder and, by `Reserve`, the room kept back there; never touches anything
else in it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
from pathlib import Path

from zbroker.errors import DataFolderError
from zbroker.node.reserve import Reserve

FORMAT = 1
"""The folder format that this version reads and writes."""
LOCK, IDENTITY = "lock", "node.json"


class DataFolder:
    """An open, locked data folder.

    Attributes:
        path: the folder.
        disk_id: 32 hexadecimal digits, chosen when the folder was first formatted.
        starts: which start of a node on this disk this is, from 1.
        was_clean: the stop before this start was in order, so that everything written then is on disk.
        reserve: room on the disk for what is no record.
    """

    def __init__(self, path: Path, node: str) -> None:
        """Makes the folder where there is none, locks it and reads or writes its identity.

        Raises:
            DataFolderError: another node runs on it, it belongs to another node, it is of a newer version, or it
                cannot be used; the sentence says what to do.
        """
        self.path = path
        self.reserve = Reserve(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise DataFolderError(
                f"the data folder {path} cannot be used: {error.strerror}; name another with `data:`"
            ) from None
        try:
            self._take_lock()
            self._node = node
            self.was_clean = False
            self.disk_id, self.starts = self._identify(node)
            self.reserve.fill()
        except BaseException:
            os.close(self._lock)
            raise

    def close(self) -> None:
        """Removes the lock. The folder may be opened again, by another process too."""
        with contextlib.suppress(FileNotFoundError):
            (self.path / LOCK).unlink()
        os.close(self._lock)

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(self._lock, 20, 0).decode(errors="replace").strip() or "unknown"
            raise DataFolderError(
                f"the data folder {self.path} is in use by another node (process {owner}); "
                "stop that one, or name another folder with `data:`"
            ) from None
        if not self._lock_is_ours():
            raise DataFolderError(
                f"the data folder {self.path} was just released by another node; start this one again"
            )
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)

    def _lock_is_ours(self) -> bool:
        """Whether the locked file is still the one in the folder: its last owner may have removed it."""
        try:
            return os.path.samestat(os.fstat(self._lock), os.stat(self.path / LOCK))
        except FileNotFoundError:
            return False

    @property
    def incarnation(self) -> int:
        """Which process start this is: larger for each start on this disk, and never one of another disk."""
        return (int(self.disk_id[:8], 16) << 24) + self.starts

    def _identify(self, node: str) -> tuple[str, int]:
        """The disk's id, and this start's number, which is on disk before anybody hears of it."""
        file = self.path / IDENTITY
        try:
            text = file.read_text(encoding="utf-8")
        except FileNotFoundError:
            return self._format(file, node)
        except (OSError, UnicodeDecodeError) as error:
            raise DataFolderError(f"{file} cannot be read: {error}") from None
        try:
            identity = json.loads(text)
            version, owner, disk_id = identity["format"], identity["node"], identity["disk_id"]
            starts = int(identity.get("starts", 0))
            self.was_clean = identity.get("clean", False) is True
        except (ValueError, KeyError, TypeError):
            raise DataFolderError(
                f"{file} is damaged; restore it from a copy, or name another folder with `data:`"
            ) from None
        if version != FORMAT:
            raise DataFolderError(
                f"the data folder {self.path} has format {version}, and this version knows {FORMAT}; "
                "start the version that wrote it, or a newer one"
            )
        if owner != node:
            raise DataFolderError(
                f"the data folder {self.path} belongs to node {owner!r}, not to {node!r}; "
                "name another folder with `data:`"
            )
        self._write(file, node, disk_id, starts + 1)
        return str(disk_id), starts + 1

    def _format(self, file: Path, node: str) -> tuple[str, int]:
        """Gives a new disk its identity."""
        partial = file.with_suffix(
            ".partial"
        )  # one that is there already is of a start that crashed here
        ours = (LOCK, partial.name)
        present = sorted(entry.name for entry in self.path.iterdir() if entry.name not in ours)
        if present:
            raise DataFolderError(
                f"the data folder {self.path} is not empty and has no {IDENTITY} (it holds "
                f"{', '.join(present[:3])}); name an empty folder with `data:`"
            )
        disk_id = secrets.token_hex(16)
        self._write(file, node, disk_id, 1)
        return disk_id, 1

    def note_clean_stop(self) -> None:
        """Everything that was written is on disk: the next start may go by that."""
        self._write(self.path / IDENTITY, self._node, self.disk_id, self.starts, clean=True)

    def _write(
        self, file: Path, node: str, disk_id: str, starts: int, *, clean: bool = False
    ) -> None:
        """Replaces the identity, whole or not at all."""
        identity = {
            "format": FORMAT, "node": node, "disk_id": disk_id, "starts": starts, "clean": clean,
        }  # fmt: skip
        text = json.dumps(identity, indent=2) + "\n"
        partial = file.with_suffix(".partial")
        try:
            self.reserve.keep(lambda: self._replace(file, partial, text))
        except OSError as error:
            raise DataFolderError(
                f"{file} cannot be written: {error.strerror}; a node notes there that it starts"
            ) from None

    def _replace(self, file: Path, partial: Path, text: str) -> None:
        with partial.open("w", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        partial.rename(file)
        folder = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
