"""A simulated disk and the storage over it: everything that a real one does to a log, from one seed.

Owns what is in the cache and what is on the disk, for bytes and for names alike: what was not flushed may be lost
at a power failure, in part, in any order, torn at any byte. Fills up, fails its flushes as a kernel does (once, with
the pages marked clean), has bad blocks and flipped bits, and ends at any operation. The same seed does the same under
any hash seed. `SimulatedStorage` runs a log's requests over it late and out of order, as threads would.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Sequence

from zbroker.log.storage import Completion, Request, execute
from zbroker.protocol.batch import Buffer

Change = tuple[int, bytes | None]
"""A write (position, bytes), or a cut (length, None)."""


class PowerLost(BaseException):
    """The machine is off. No `Exception`, so that no code under test handles it."""


class SimulatedFile:
    """A file's bytes: in the cache, on the disk, and the changes that are on their way from one to the other."""

    def __init__(self) -> None:
        self.cached = bytearray()
        self.durable = bytearray()
        self.changes: list[Change] = []
        self.bad: list[tuple[int, int]] = []

    def change(self, change: Change) -> None:
        """Changes the cache; the disk follows at a flush."""
        apply(self.cached, change)
        self.changes.append(change)

    def flush(self) -> None:
        """The disk has what the cache has."""
        for change in self.changes:
            apply(self.durable, change)
        self.changes.clear()

    def lose_power(self, rng: random.Random) -> None:
        """Some of what was on its way arrived; the rest never happened."""
        style = rng.choice(("all", "none", "suffix", "subset", "subset"))
        if style == "suffix":
            self.changes = self.changes[: rng.randint(0, len(self.changes))]
        for number, change in enumerate(self.changes):
            last = style == "suffix" and number == len(self.changes) - 1
            if style == "none" or (style == "subset" and rng.random() < 0.4):
                continue
            if style == "subset" or last:
                change = tear(change, rng)
            apply(self.durable, change)
        self.changes = []
        self.cached = bytearray(self.durable)


def apply(data: bytearray, change: Change) -> None:
    """Makes one change to a file's bytes; what lies between its end and a write becomes zeros."""
    position, written = change
    if len(data) < position:
        data.extend(bytes(position - len(data)))
    if written is None:
        del data[position:]
    else:
        data[position : position + len(written)] = written


def tear(change: Change, rng: random.Random) -> Change:
    """A write of which, now and then, only a part arrived."""
    position, written = change
    if written is None or not written or rng.random() < 0.5:
        return change
    begin = 0 if rng.random() < 0.7 else rng.randrange(len(written))
    return position + begin, written[begin : rng.randint(begin, len(written))]


Node = "SimulatedFile | SimulatedFolder"


class SimulatedFolder:
    """A folder's names: in the cache, on the disk, and the changes in between (name, what it means or None)."""

    def __init__(self) -> None:
        self.cached: dict[str, SimulatedFile | SimulatedFolder] = {}
        self.durable: dict[str, SimulatedFile | SimulatedFolder] = {}
        self.changes: list[list[tuple[str, SimulatedFile | SimulatedFolder | None]]] = []

    def change(self, *names: tuple[str, SimulatedFile | SimulatedFolder | None]) -> None:
        """Changes some names at once."""
        _rename(self.cached, names)
        self.changes.append(list(names))

    def flush(self) -> None:
        """The disk has the names that the cache has; not yet what is in the files."""
        for names in self.changes:
            _rename(self.durable, names)
        self.changes.clear()

    def lose_power(self, rng: random.Random) -> None:
        """Some of the names' changes arrived, and so for all that is below."""
        if rng.random() < 0.5:
            self.changes = self.changes[: rng.randint(0, len(self.changes))]
            arrived = self.changes
        else:
            arrived = [names for names in self.changes if rng.random() < 0.6]
        for names in arrived:
            _rename(self.durable, names)
        self.changes = []
        self.cached = dict(self.durable)
        for name in sorted(self.durable):
            self.durable[name].lose_power(rng)


def _rename(
    entries: dict[str, SimulatedFile | SimulatedFolder],
    names: Sequence[tuple[str, SimulatedFile | SimulatedFolder | None]],
) -> None:
    for name, node in names:
        if node is None:
            entries.pop(name, None)
        else:
            entries[name] = node


class SimulatedDisk:
    """`zbroker.log.storage.Files` over a disk that misbehaves as it is told.

    Args:
        rng: decides what a power loss leaves; seed it.

    Attributes:
        budget: bytes that fit on the disk; None: no limit.
        operations: how many calls have changed something or flushed.
        crash_at: the operation at which the power goes, in its middle; None: never.
        fail_flushes: how many of the next flushes fail; their changes are dropped, and later ones succeed.
        flushes: how many flushes, of files and folders, there were.
    """

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.budget: int | None = None
        self.operations = 0
        self.crash_at: int | None = None
        self.fail_flushes = 0
        self.flushes = 0
        self.off = False
        self.hook: Callable[[str, str], None] | None = None
        self._root = SimulatedFolder()

    # Faults ---

    def lose_power(self) -> None:
        """The machine is switched off and on again."""
        self.off = False
        self.crash_at = None
        self.fail_flushes = 0
        self._root.lose_power(self.rng)

    def restart(self) -> None:
        """The process was killed and the machine lives: all that was written stays, flushed or not."""
        self.off = False
        self.crash_at = None

    def flip(self, path: str, position: int, mask: int = 1) -> None:
        """Flips bits of one byte, in the cache and on the disk."""
        file = self._file(path)
        for data in (file.cached, file.durable):
            if position < len(data):
                data[position] ^= mask

    def spoil(self, path: str, position: int, length: int) -> None:
        """Makes a range of a file unreadable: `EIO`."""
        self._file(path).bad.append((position, position + length))

    def cut(self, path: str, length: int) -> None:
        """Takes a file's end away, on the disk too."""
        file = self._file(path)
        file.flush()
        del file.cached[length:], file.durable[length:]

    def lose(self, path: str) -> None:
        """Takes a file away, on the disk too."""
        folder, name = self._place(path)
        folder.change((name, None))
        folder.flush()

    def durable(self, path: str) -> bytes:
        """What would be left of a file if nothing more arrived."""
        return bytes(self._file(path).durable)

    def on_disk(self, path: str) -> bytes | None:
        """What a power failure that keeps nothing more would leave of a file; None where its name would be gone."""
        at: SimulatedFile | SimulatedFolder | None = self._root
        for name in path.split("/"):
            at = at.durable.get(name) if isinstance(at, SimulatedFolder) else None
        return bytes(at.durable) if isinstance(at, SimulatedFile) else None

    @property
    def used(self) -> int:
        """Bytes in all files."""
        return _used(self._root)

    # Files ---

    def list(self, folder: str) -> list[str]:
        """The names in a folder, sorted."""
        found = self._find(folder)
        return sorted(found.cached) if isinstance(found, SimulatedFolder) else []

    def size(self, path: str) -> int:
        """A file's size, -1 when there is none."""
        found = self._find(path)
        return len(found.cached) if isinstance(found, SimulatedFile) else -1

    def read(self, path: str, position: int, length: int) -> bytes:
        """Up to `length` bytes."""
        self._check_power()
        file = self._file(path)
        if any(first < position + length and position < end for first, end in file.bad):
            raise OSError(errno.EIO, "bad block", path)
        return bytes(file.cached[position : position + length])

    def write(self, path: str, position: int, buffers: Sequence[Buffer]) -> None:
        """Writes all buffers; on a full disk, as much as there is room for."""
        data = b"".join(buffers)
        crash = self._count("write", path)
        folder, name = self._place(path)
        file = folder.cached.get(name)
        if file is None:
            file = SimulatedFile()
            folder.change((name, file))
        assert isinstance(file, SimulatedFile)
        room = self._room(max(0, position + len(data) - len(file.cached)), len(data))
        if crash:
            room = self.rng.randint(0, room)
        if room:
            file.change((position, data[:room]))
        if crash:
            self._lose()
        if room < len(data):
            raise OSError(errno.ENOSPC, "no space left on device", path)

    def flush(self, path: str) -> None:
        """Puts a file on the disk."""
        if self._count("flush", path):
            self._lose()
        self.flushes += 1
        file = self._file(path)
        if self.fail_flushes:
            self.fail_flushes -= 1
            file.changes.clear()
            raise OSError(errno.EIO, "input/output error", path)
        file.flush()

    def flush_folder(self, folder: str) -> None:
        """Puts a folder's names on the disk."""
        if self._count("flush_folder", folder):
            self._lose()
        self.flushes += 1
        found = self._folder(folder)
        if self.fail_flushes:
            self.fail_flushes -= 1
            found.changes.clear()
            raise OSError(errno.EIO, "input/output error", folder)
        found.flush()

    def truncate(self, path: str, length: int) -> None:
        """Cuts the file, or fills it up with zeros."""
        if self._count("truncate", path):
            self._lose()
        self._file(path).change((length, None))

    def rename(self, old: str, new: str) -> None:
        """Gives a file or folder another name."""
        if self._count("rename", old):
            self._lose()
        source, name = self._place(old)
        target, new_name = self._place(new)
        if name not in source.cached:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), old)
        node = source.cached[name]
        if source is target:
            source.change((name, None), (new_name, node))
        else:
            target.change((new_name, node))
            source.change((name, None))

    def remove(self, path: str) -> None:
        """Removes a file."""
        if self._count("remove", path):
            self._lose()
        folder, name = self._place(path)
        if name not in folder.cached:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        folder.change((name, None))

    def make_folder(self, folder: str) -> None:
        """Makes a folder and those above it."""
        if self._count("make_folder", folder):
            self._lose()
        at = self._root
        for name in folder.split("/"):
            below = at.cached.get(name)
            if below is None:
                below = SimulatedFolder()
                at.change((name, below))
            assert isinstance(below, SimulatedFolder)
            at = below

    def remove_folder(self, folder: str) -> None:
        """Removes a folder with all that is in it."""
        if self._count("remove_folder", folder):
            self._lose()
        if self._find(folder) is not None:
            above, name = self._place(folder)
            above.change((name, None))

    # Within ---

    def _count(self, kind: str, path: str) -> bool:
        """Counts an operation; whether the power goes in this one."""
        self._check_power()
        if self.hook is not None:
            self.hook(kind, path)
        self.operations += 1
        return self.operations == self.crash_at

    def _lose(self) -> None:
        self.off = True
        raise PowerLost

    def _check_power(self) -> None:
        if self.off:
            raise PowerLost

    def _room(self, growth: int, length: int) -> int:
        """How many bytes of a write find room."""
        if self.budget is None or not growth:
            return length
        return max(0, length - max(0, growth - max(0, self.budget - self.used)))

    def _find(self, path: str) -> SimulatedFile | SimulatedFolder | None:
        at: SimulatedFile | SimulatedFolder | None = self._root
        for name in path.split("/") if path else ():
            if not isinstance(at, SimulatedFolder):
                return None
            at = at.cached.get(name)
        return at

    def _file(self, path: str) -> SimulatedFile:
        found = self._find(path)
        if not isinstance(found, SimulatedFile):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return found

    def _folder(self, path: str) -> SimulatedFolder:
        found = self._find(path)
        if not isinstance(found, SimulatedFolder):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return found

    def _place(self, path: str) -> tuple[SimulatedFolder, str]:
        above, _, name = path.rpartition("/")
        return self._folder(above), name


def _used(folder: SimulatedFolder) -> int:
    total = 0
    for node in folder.cached.values():
        total += _used(node) if isinstance(node, SimulatedFolder) else len(node.cached)
    return total


class SimulatedStorage:
    """`zbroker.log.storage.Storage` over a simulated disk, in steps.

    Requests of one owner's write lane run in order; others run in any order. What has run is told of later, in any
    order but that of one lane of one owner.

    Args:
        disk: where they run.
        rng: decides what comes next; None: everything in the order in which it was submitted.
        deliver: takes each completion.
        observe: is shown each completion when its request has run, before it is delivered.
    """

    def __init__(
        self,
        disk: SimulatedDisk,
        rng: random.Random | None,
        deliver: Callable[[Completion], None],
        observe: Callable[[Completion], None] | None = None,
    ) -> None:
        self.disk = disk
        self.deliver = deliver
        self._rng = rng
        self.running: Request | None = None
        """The request that runs, or in which the power went."""
        self._observe = observe
        self._waiting: list[Request] = []
        self._done: list[Completion] = []

    @property
    def idle(self) -> bool:
        """Whether there is nothing to run and nothing to tell."""
        return not self._waiting and not self._done

    @property
    def steps_left(self) -> int:
        """How many steps it takes until there is nothing to run and nothing to tell."""
        return 2 * len(self._waiting) + len(self._done)

    def submit(self, request: Request) -> None:
        """Takes a request for a later step."""
        self._waiting.append(request)

    def step(self) -> bool:
        """Runs one request or delivers one completion; False when there was nothing to do.

        Raises:
            PowerLost: the disk's power went while a request ran.
        """
        if self.idle:
            return False
        choices = len(self._waiting) + len(self._done)
        run = bool(self._waiting) and (
            self._rng is None or not self._done or self._rng.randrange(choices) < len(self._waiting)
        )
        if run:
            self.running = self._pick_request()
            done = execute(self.disk, self.running)
            self.running = None
            self._done.append(done)
            if self._observe is not None:
                self._observe(done)
        else:
            self.deliver(self._pick_completion())
        return True

    def run_all(self) -> None:
        """Steps until nothing is left to do."""
        while self.step():
            pass

    def forget(self) -> None:
        """The process is gone, and with it everything that it waited for."""
        self._waiting.clear()
        self._done.clear()

    def _pick_request(self) -> Request:
        if self._rng is None:
            return self._waiting.pop(0)
        at = self._rng.randrange(len(self._waiting))
        chosen = self._waiting[at]
        for earlier, request in enumerate(self._waiting[:at]):
            if request.owner == chosen.owner and request.lane == chosen.lane != "read":
                return self._waiting.pop(earlier)
        return self._waiting.pop(at)

    def _pick_completion(self) -> Completion:
        if self._rng is None:
            return self._done.pop(0)
        return self._done.pop(self._rng.randrange(len(self._done)))
