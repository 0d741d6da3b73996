"""How much memory the process holds, and when that is more than its clients may make it hold.

Owns the measure and the bound. What the broker holds it counts itself and refuses beyond; this is for what nobody
counts: frames that libzmq collects of messages that have not ended yet.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable

from zbroker.broker.ports import Report

SPARE_BYTES = 128 << 20
"""What a node needs beyond what `limits: memory` counts: indexes, queues of small messages, the interpreter."""


GROWTH_A_MS = 2 << 20
"""How much a process may come to hold within a millisecond, bytes: more than libzmq takes off any network."""

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@functools.cache
def _statm() -> int:
    """The process's own numbers, kept open: they are looked at several times a second."""
    return os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)


def resident_bytes() -> int:
    """The process's resident memory; its peak where the present value cannot be had."""
    try:
        return int(os.pread(_statm(), 100, 0).split()[1]) * PAGE_BYTES
    except OSError:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


class MemoryGuard:
    """Compares the process's memory with what is allowed beyond what it had at the start."""

    def __init__(
        self, limit: int, report: Report, measure: Callable[[], int] = resident_bytes
    ) -> None:
        """`limit` is what clients may make the node hold, in bytes."""
        self._allowed = limit * 2 + SPARE_BYTES
        self._report = report
        self._measure = measure
        self._baseline = measure()
        self._look_at = 0

    def is_exceeded(self, now: int) -> bool:
        """Whether connections must be ended to get memory back.

        Args:
            now: monotonic, ms. It measures only where the process can have come to hold so much by then.
        """
        if now < self._look_at:
            return False
        held = self._measure() - self._baseline
        if held <= self._allowed:
            self._look_at = now + (self._allowed - held) // GROWTH_A_MS
            return False
        self._report("memory_exceeded", held=held >> 20, allowed=self._allowed >> 20)
        return True

    def settle(self) -> None:
        """Takes what is still held, though freed, as the new baseline: the allocator reuses it."""
        self._baseline = max(self._baseline, self._measure())
