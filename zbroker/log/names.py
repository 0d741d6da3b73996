"""The names of the files in a partition's folder. Owns which names are ours; all others are left alone."""

from __future__ import annotations

LOG = ".log"
INDEX = ".index"
PRODUCERS = ".producers"
TEMPORARY = ".tmp"
DELETED = ".deleted"
EPOCHS = "epochs"
CHECKPOINT = "checkpoint"
COMPACTION = "compaction"
FSYNC_FAILED = "fsync-failed"
PROBE = "probe.tmp"

_DIGITS = 20


def path(folder: str, base: int, suffix: str) -> str:
    """The path of the file that belongs to an offset: its segment, index or producer snapshot.

    >>> path("t/0", 42, LOG)
    't/0/00000000000000000042.log'
    """
    return f"{folder}/{base:020d}{suffix}"


def offset_of(name: str, suffix: str) -> int | None:
    """The offset in a file's name, or None where the name is not one of ours with that suffix.

    >>> offset_of("00000000000000000042.log", LOG)
    42
    """
    digits = name[:_DIGITS]
    if name[_DIGITS:] != suffix or len(digits) != _DIGITS or not digits.isascii():
        return None
    return int(digits) if digits.isdigit() else None


def offsets(listing: list[str], suffix: str) -> list[int]:
    """The offsets of all files with a suffix, in order."""
    found = (offset_of(name, suffix) for name in listing)
    return sorted(offset for offset in found if offset is not None)


def parent(folder: str) -> str:
    """The folder above; the data folder itself is the empty name.

    >>> parent("topics/t"), parent("topics")
    ('topics', '')
    """
    return folder.rpartition("/")[0]
