"""Small files that are replaced as a whole: magic, version, length and CRC around a body.

Owns how the epoch table, the checkpoint, indexes and producer snapshots stand on disk, how they are replaced
without ever being half there, and what a failed fsync leaves behind. Never looks into a body.

Layout, little-endian: 4 B magic, u16 version, u16 zero, u32 length of the body, u32 CRC-32C of the 12 bytes before
it and the body; then the body.
"""

from __future__ import annotations

import contextlib
import errno
import struct

from zbroker.errors import StorageFailed, UnsupportedVersion
from zbroker.log import names
from zbroker.log.storage import Files
from zbroker.protocol.batch import crc32c

VERSION = 1
"""The version of everything in a partition's folder but the batches, which carry their own."""

FULL = frozenset((errno.ENOSPC, errno.EDQUOT))

_HEAD = struct.Struct("<4sHHI")
_CRC = struct.Struct("<I")
_BODY_AT = _HEAD.size + _CRC.size


def seal(magic: bytes, body: bytes, version: int = VERSION) -> bytes:
    """A body with its envelope around it."""
    head = _HEAD.pack(magic, version, 0, len(body))
    return head + _CRC.pack(crc32c(body, crc32c(head))) + body


def unseal(magic: bytes, data: bytes, path: str) -> bytes | None:
    """The body, or None where the envelope or the body is damaged.

    Raises:
        UnsupportedVersion: the file is whole, and a newer version of zbroker wrote it.
    """
    if len(data) < _BODY_AT:
        return None
    head = data[: _HEAD.size]
    found, version, _, length = _HEAD.unpack(head)
    body = data[_BODY_AT:]
    (crc,) = _CRC.unpack_from(data, _HEAD.size)
    if found != magic or length != len(body) or crc32c(body, crc32c(head)) != crc:
        return None
    if version > VERSION:
        raise UnsupportedVersion(
            f"{path} has format version {version}, and this zbroker knows up to {VERSION}; "
            f"start the newer version that wrote it",
            version=version, known=VERSION,
        )  # fmt: skip
    return body


def load(files: Files, path: str, magic: bytes) -> bytes | None:
    """The body of a small file, or None where it is missing, unreadable or damaged."""
    size = files.size(path)
    if size < 0:
        return None
    try:
        data = files.read(path, 0, size)
    except OSError:
        return None
    return unseal(magic, data, path)


def save(files: Files, folder: str, name: str, data: bytes, *, durable: bool = True) -> None:
    """Replaces a small file so that after any crash the old or the new one is there, whole.

    Args:
        durable: False for what can be rebuilt: it is not waited for, and may be lost or torn in a crash.

    Raises:
        OSError: nothing has been replaced, the disk being full, for example.
        StorageFailed: a flush failed; the marker is left.
    """
    path = f"{folder}/{name}"
    temporary = path + names.TEMPORARY
    if not durable:
        # Else what a crash left there could be back after the next one, whole and of another time.
        with contextlib.suppress(FileNotFoundError):
            files.remove(temporary)
    try:
        files.write(temporary, 0, [data])
        files.truncate(temporary, len(data))
    except OSError:
        with contextlib.suppress(OSError):
            files.remove(temporary)
        raise
    if durable:
        flush(files, folder, temporary)
    files.rename(temporary, path)
    if durable:
        flush_folder(files, folder)


def flush(files: Files, folder: str, path: str) -> None:
    """Flushes a file; a failure is final, since a second try would report success without having done it."""
    try:
        files.flush(path)
    except OSError as error:
        raise failed(files, folder, f"flushing {path}", error) from error


def flush_folder(files: Files, folder: str) -> None:
    """Flushes a partition folder's names, under the same rule."""
    try:
        files.flush_folder(folder)
    except OSError as error:
        raise failed(files, folder, f"flushing the folder {folder}", error) from error


def failed(files: Files, folder: str, what: str, error: OSError) -> StorageFailed:
    """Leaves the marker as well as it can, and returns the error to raise."""
    marker = f"{folder}/{names.FSYNC_FAILED}"
    with contextlib.suppress(OSError):
        files.write(marker, 0, [f"{what}: {error}\n".encode()])
        files.flush(marker)
        files.flush_folder(folder)
    return StorageFailed(
        f"{what} failed ({error}); the disk may have lost writes, and the next start rewrites what it cannot trust"
    )
