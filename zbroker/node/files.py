"""Real files: the `Files` port of the log over a folder of the operating system.

Owns the descriptors that stay open between requests. Safe from many threads at once: a descriptor in use is never
closed under its user. Decides nothing.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
from collections import OrderedDict
from collections.abc import Sequence

from zbroker.cluster.formation import FOLDER as METADATA_FOLDER
from zbroker.log import names
from zbroker.node.reserve import Reserve
from zbroker.protocol.batch import Buffer

IOV_MAX = min(os.sysconf("SC_IOV_MAX"), 1024) if hasattr(os, "sysconf") else 16
_JOIN_BELOW = 4096
_READ, _WRITE = os.O_RDONLY | os.O_CLOEXEC, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC


class _Descriptor:
    """An open file; `users` counts those who are inside a call, `gone` that it closes after the last of them."""

    __slots__ = ("fd", "gone", "users", "writable")

    def __init__(self, fd: int, writable: bool) -> None:
        self.fd = fd
        self.writable = writable
        self.users = 1
        self.gone = False


class RealFiles:
    """`zbroker.log.storage.Files` over a data folder.

    Args:
        root: the data folder, which exists.
        descriptors: how many files stay open at most between calls.
        reserve: room for what is no record (see `reserve`).
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        descriptors: int = 256,
        reserve: Reserve | None = None,
    ) -> None:
        self._root = os.fspath(root)
        self._reserve = reserve
        self._limit = descriptors
        self._lock = threading.Lock()
        self._open: OrderedDict[str, _Descriptor] = OrderedDict()
        self._forgotten = 0

    def list(self, folder: str) -> list[str]:
        """The names in a folder, sorted."""
        try:
            return sorted(os.listdir(self._path(folder)))
        except FileNotFoundError:
            return []

    def size(self, path: str) -> int:
        """A file's size, -1 when there is none."""
        try:
            return os.stat(self._path(path)).st_size
        except FileNotFoundError:
            return -1

    def read(self, path: str, position: int, length: int) -> bytes:
        """Up to `length` bytes; fewer only where the file ends."""
        held = self._take(path, writable=False)
        try:
            data = os.pread(held.fd, length, position)
            if len(data) == length or not data:
                return data
            parts = [data]
            got = len(data)
            while got < length and (more := os.pread(held.fd, length - got, position + got)):
                parts.append(more)
                got += len(more)
            return b"".join(parts)
        finally:
            self._give_back(held)

    def write(self, path: str, position: int, buffers: Sequence[Buffer]) -> None:
        """Writes all buffers back to back, in as few system calls as that takes."""
        if self._reserve is not None and _may_take_reserve(path):
            self._reserve.keep(lambda: self._write(path, position, buffers))
        else:
            self._write(path, position, buffers)

    def _write(self, path: str, position: int, buffers: Sequence[Buffer]) -> None:
        held = self._take(path, writable=True)
        try:
            for group in _groups(buffers):
                position += _write_whole(held.fd, position, group)
        finally:
            self._give_back(held)

    def flush(self, path: str) -> None:
        """Puts a file's bytes and size on the disk itself."""
        held = self._take(path, writable=True, create=False)
        try:
            sync_file(held.fd)
        finally:
            self._give_back(held)

    def flush_folder(self, folder: str) -> None:
        """Puts a folder's names on the disk itself."""
        fd = os.open(self._path(folder), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def truncate(self, path: str, length: int) -> None:
        """Cuts the file, or fills it up with zeros."""
        held = self._take(path, writable=True, create=False)
        try:
            os.ftruncate(held.fd, length)
        finally:
            self._give_back(held)

    def rename(self, old: str, new: str) -> None:
        """Gives a file or folder another name, replacing a file of that name at once."""
        os.rename(self._path(old), self._path(new))
        self._forget(old)
        self._forget(new)

    def remove(self, path: str) -> None:
        """Removes a file."""
        os.unlink(self._path(path))
        self._forget(path)

    def make_folder(self, folder: str) -> None:
        """Makes a folder and those above it."""
        os.makedirs(self._path(folder), exist_ok=True)

    def remove_folder(self, folder: str) -> None:
        """Removes a folder and all that is in it."""
        self._forget(folder)
        path = self._path(folder)
        while True:
            try:
                shutil.rmtree(path)
            except FileNotFoundError:
                # Another thread removes a folder in it: what that one leaves goes with the next try.
                if os.path.lexists(path):
                    continue
            return

    def close(self) -> None:
        """Closes what is open; calls may follow all the same."""
        with self._lock:
            for path in list(self._open):
                self._drop(path)

    # Descriptors ---

    def _path(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root

    def _take(self, path: str, *, writable: bool, create: bool = True) -> _Descriptor:
        """The file's descriptor, its user counted: give it back."""
        with self._lock:
            held = self._open.get(path)
            if held is not None and (held.writable or not writable):
                held.users += 1
                self._open.move_to_end(path)
                return held
            forgotten = self._forgotten
        flags = _READ if not writable else _WRITE if create else _WRITE & ~os.O_CREAT
        held = _Descriptor(os.open(self._path(path), flags, 0o644), writable)
        with self._lock:
            other = self._open.get(path)
            if forgotten != self._forgotten or (other is not None and other.writable):
                held.gone = (
                    True  # the name may mean another file by now, or somebody was faster: not kept
                )
                return held
            if other is not None:
                self._drop(path)
            self._open[path] = held
            while len(self._open) > self._limit:
                self._drop(next(iter(self._open)))
        return held

    def _give_back(self, held: _Descriptor) -> None:
        with self._lock:
            held.users -= 1
            last = held.gone and not held.users
        if last:  # it may free a large file that was removed, and nobody is to wait for that
            os.close(held.fd)

    def _forget(self, path: str) -> None:
        """Closes what is open under a name, or below it, since the name now means something else."""
        below = path + "/"
        with self._lock:
            self._forgotten += 1
            for name in [name for name in self._open if name == path or name.startswith(below)]:
                self._drop(name)

    def _drop(self, path: str) -> None:
        held = self._open.pop(path)
        held.gone = True
        if not held.users:
            os.close(held.fd)


def _groups(buffers: Sequence[Buffer]) -> list[Sequence[Buffer]]:
    """The buffers as one system call each takes them: many small ones joined, else by the system's limit."""
    count = len(buffers)
    if count > 16 and sum(map(len, buffers)) < count * _JOIN_BELOW:
        return [[b"".join(buffers)]]
    return [buffers[at : at + IOV_MAX] for at in range(0, count, IOV_MAX)] or [[]]


def _may_take_reserve(path: str) -> bool:
    """Whether it is anything but records, or the question whether there is room for them."""
    if path.endswith(names.PROBE):
        return False
    return not path.endswith(names.LOG) or path.startswith(f"{METADATA_FOLDER}/")


def _write_whole(fd: int, position: int, buffers: Sequence[Buffer]) -> int:
    """Writes all of it, however often the system stops short; returns how much that was."""
    total = sum(map(len, buffers))
    if not total:
        return 0
    done = os.pwritev(fd, buffers, position)
    if done < total:
        rest = memoryview(b"".join(buffers))
        while done < total:
            done += os.pwrite(fd, rest[done:], position + done)
    return total


if sys.platform == "darwin":
    import fcntl

    def sync_file(fd: int) -> None:
        """F_FULLFSYNC: what fsync on macOS only promises."""
        try:
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
        except OSError:  # a file system that does not know it
            os.fsync(fd)

else:

    def sync_file(fd: int) -> None:
        """Data and size, not the times."""
        os.fdatasync(fd)
