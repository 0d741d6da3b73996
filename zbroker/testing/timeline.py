"""Simulated time: what is due when, in one order that depends on nothing but what was asked for, and a trace of it.

Owns the clock of a simulation, in microseconds, and the digest by which two runs are compared. Never decides what
happens; it only calls what it was told to call, the earliest first, and of equals the one that was asked for first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from hashlib import blake2b
from heapq import heappop, heappush

MS = 1000
SECOND = 1_000_000
"""Microseconds."""
DIGESTED_AT_ONCE = 200
"""Lines."""


class Timeline:
    """A queue of actions over simulated time.

    Attributes:
        now: microseconds since the simulation began.
        steps: how many actions there have been.
    """

    def __init__(self) -> None:
        self.now = 0
        self.steps = 0
        self._queue: list[tuple[int, int, Callable[[], object]]] = []
        self._asked = 0

    def at(self, time: int, action: Callable[[], object]) -> None:
        """Calls an action at a time; one that has passed means now."""
        self._asked += 1
        heappush(self._queue, (time if time > self.now else self.now, self._asked, action))

    def after(self, delay: int, action: Callable[[], object]) -> None:
        """Calls an action after so many microseconds."""
        self.at(self.now + delay, action)

    def step(self, until: int) -> bool:
        """The next action, unless it is due after `until`: then time is there, and the answer is False."""
        if not self._queue or self._queue[0][0] > until:
            self.now = max(self.now, until)
            return False
        self.now, _, action = heappop(self._queue)
        self.steps += 1
        action()
        return True

    def run(self, until: int) -> None:
        """Everything up to a time."""
        while self.step(until):
            pass


class Trace:
    """What happened, as lines for people and as one digest.

    Args:
        keep: how many of the last lines to keep; None keeps all of them.
    """

    def __init__(self, timeline: Timeline, keep: int | None = 400) -> None:
        self._notes: deque[tuple[int, str, str]] = deque(maxlen=keep)
        self._timeline = timeline
        self._digest = blake2b(digest_size=16)
        self._undigested: list[str] = []

    def note(self, who: str, what: str) -> None:
        """One line: who did, or met, what."""
        now = self._timeline.now
        self._notes.append((now, who, what))
        undigested = self._undigested
        undigested.append(f"{now} {who} {what}")
        if len(undigested) >= DIGESTED_AT_ONCE:
            self._digest_now()

    def _digest_now(self) -> None:
        self._digest.update("\n".join(["", *self._undigested]).encode())
        self._undigested.clear()

    @property
    def lines(self) -> list[str]:
        """The last lines."""
        return [f"{at / SECOND:11.6f} {who:<8} {what}" for at, who, what in self._notes]

    @property
    def digest(self) -> str:
        """Equal for two runs in which the same happened in the same order."""
        self._digest_now()
        return self._digest.hexdigest()
