"""The storage port: blocking file operations, requests that use them, and the completions that come back.

Owns the vocabulary between a log, which decides, and a storage, which runs: threads over real files in a node,
simulated time over a simulated disk in tests. Never decides anything and never touches a file itself.

Lanes say what may overtake what. Within one owner the log keeps at most one request on `write` and one of its own
upkeep on `flush` outstanding; reads are independent of each other.

========== ===================================================================================================
write      appends, new epochs, truncation, recovery: what must be ordered with appends
flush      what runs beside writes: interval flushes, checkpoints, files that retention removes
read       reads and searches
compaction slices of a compaction, one after another: they are many, and nothing waits for them
metadata   every request of the metadata log, on a thread that data fsyncs do not queue on
========== ===================================================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import msgspec

from zbroker.errors import StorageFailed, ZBrokerError
from zbroker.protocol.batch import Buffer

Lane = Literal["write", "flush", "read", "compaction", "metadata"]


class Files(Protocol):
    """Blocking file operations under a data folder; paths are relative and divided by `/`.

    All raise `OSError` where the operating system does; `ENOSPC` means that the disk is full.
    """

    def list(self, folder: str) -> list[str]:
        """The names in a folder, sorted; none when there is no such folder."""
        ...

    def size(self, path: str) -> int:
        """A file's size in bytes, -1 when there is none."""
        ...

    def read(self, path: str, position: int, length: int) -> bytes:
        """Up to `length` bytes; fewer only where the file ends."""
        ...

    def write(self, path: str, position: int, buffers: Sequence[Buffer]) -> None:
        """Writes all buffers back to back from a position on, and makes the file where there is none."""
        ...

    def flush(self, path: str) -> None:
        """Returns once the file's bytes and its size are on the disk itself."""
        ...

    def flush_folder(self, folder: str) -> None:
        """Returns once the names in the folder are on the disk itself."""
        ...

    def truncate(self, path: str, length: int) -> None:
        """Cuts the file, or fills it up with zeros."""
        ...

    def rename(self, old: str, new: str) -> None:
        """Gives a file or folder another name, replacing a file of that name at once."""
        ...

    def remove(self, path: str) -> None:
        """Removes a file."""
        ...

    def make_folder(self, folder: str) -> None:
        """Makes a folder and those above it; one that exists is fine."""
        ...

    def remove_folder(self, folder: str) -> None:
        """Removes a folder and all that is in it; only ever called for an applied deletion of a topic."""
        ...


class Request(msgspec.Struct, eq=False, kw_only=True):
    """Work for a storage. Subclasses carry what they need and do it in `run`, off the reactor unless `quick`.

    Attributes:
        owner: the folder of the log that asked, by which completions are routed.
        lane: what it may overtake (see the module).
    """

    owner: str
    lane: Lane

    @property
    def quick(self) -> bool:
        """Whether it only puts a few KiB into a file that is there, and waits for no disk as a rule."""
        return False

    def attempt(self, files: Files) -> None:
        """Does it where it is `quick`.

        Raises:
            OSError: it has come to nothing; to `run` it says why, and takes back what there is of it.
        """
        raise NotImplementedError

    def run(self, files: Files) -> Any:
        """Does the work and returns what `Completion.result` is to be."""
        raise NotImplementedError


class Completion(msgspec.Struct, eq=False):
    """What became of a request: its result, or the error that it ended in."""

    request: Request
    result: Any = None
    error: OSError | ZBrokerError | None = None


class Storage(Protocol):
    """Takes requests and later hands each one's completion to its owner's `Log.on_event`."""

    def submit(self, request: Request) -> None:
        """Never blocks, and never completes the request before it returns."""
        ...


def execute(files: Files, request: Request) -> Completion:
    """Runs a request to its completion; whatever goes wrong becomes part of it, for somebody waits for it."""
    try:
        return Completion(request, request.run(files))
    except (OSError, ZBrokerError) as error:
        return Completion(request, None, error)
    except Exception as error:
        failed = StorageFailed(f"{type(request).__name__} of {request.owner} failed: {error!r}")
        return Completion(request, None, failed)
