"""Room on the disk that is kept back, so that a full one silences no voter and can be emptied in order.

Records never get it. What does: the metadata's log and votes, and the small files of every log, without which neither
retention nor `delete records before` could make room. Owns the file `reserve` at the top of the data folder, which
shrinks by steps as room is needed and grows again when there is plenty. Decides nothing else.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

NAME = "reserve"
SIZE = 4 << 20
STEP = 64 << 10
PLENTY = 4
"""How many times what is missing must be free, so that the reserve does not itself fill the disk."""

FULL = frozenset((errno.ENOSPC, errno.EDQUOT))


class Reserve:
    """The reserve of one data folder, for any thread."""

    def __init__(self, folder: Path, size: int = SIZE) -> None:
        """Touches nothing until `fill` or `keep` is called.

        Args:
            folder: the data folder, which exists.
            size: bytes to keep back.
        """
        self._path = folder / NAME
        self._size = size
        self._lock = threading.Lock()
        self.missing = 0
        """Bytes that were given away, or never had."""

    def fill(self) -> None:
        """Takes what is missing where there is plenty of room; never fails for want of it."""
        with self._lock, contextlib.suppress(OSError):
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                held = os.fstat(fd).st_size
                self.missing = max(0, self._size - held)
                disk = os.fstatvfs(fd)
                if disk.f_bavail * disk.f_frsize < PLENTY * self.missing:
                    return
                while self.missing:
                    # Written, not only declared: a file with a hole in it holds no room.
                    held += os.pwrite(fd, bytes(min(STEP, self.missing)), held)
                    self.missing = self._size - held
            finally:
                os.close(fd)

    def keep(self, work: Callable[[], T]) -> T:
        """Does what needs a little room, and where there is none again, with a step more of the reserve's.

        Args:
            work: may be begun several times; each time it does all of it.

        Raises:
            OSError: as `work` does; that the disk is full only once nothing is left in reserve.
        """
        while True:
            try:
                done = work()
            except OSError as error:
                if error.errno not in FULL or not self._give():
                    raise
            else:
                if self.missing:
                    self.fill()
                return done

    def _give(self) -> bool:
        """Gives a step back to the disk; False when there is none."""
        with self._lock:
            try:
                held = os.stat(self._path).st_size
            except FileNotFoundError:
                held = 0
            if not held:
                return False
            left = max(0, held - STEP)
            os.truncate(self._path, left)
            self.missing = self._size - left
            return True
