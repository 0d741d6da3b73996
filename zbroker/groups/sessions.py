"""What only the present coordinator knows of members: when each was heard, who waits for an answer, what was told.

None of it is in a record: a new coordinator begins with every member heard at that moment, and with nothing told. Time
here is a clock of its own, which goes on only while the node does: a node that was frozen takes nobody for dead for
what it could not hear. So, where the two clocks keep pace, a session never ends here before it has ended by the
member's own count, which began earlier, when the heartbeat was sent.

Owns the deadlines. Never decides what follows from one. Nothing here takes time in proportion to the members.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator
from typing import Any

import msgspec

from zbroker.groups.state import TopicPartition

STEP_MAX = 1000
"""Ms that the clock goes on at most from one look at it to the next."""


class Held(msgspec.Struct):
    """A heartbeat that waits for news: whom to answer, and by when it is answered without any."""

    token: Any
    deadline: int


class Seat(msgspec.Struct):
    """One member's place at the coordinator.

    Attributes:
        heard: when its last heartbeat came, by the clock of `Sessions`.
        timeout: its session timeout, ms.
        held: its heartbeat that waits.
        version: counts the changes of its assignment; `told` is the one that it was last answered with, -1 for none.
        said: what it last said to own, None where it has not.
        release_by: when it must have released what it is to, None where there is nothing.
        away: it left for a restart that keeps its place.
        gone: it is out; whatever points here is out of date.
    """

    group: str
    member: str
    heard: int
    timeout: int
    held: Held | None = None
    version: int = 0
    told: int = -1
    said: frozenset[TopicPartition] | None = None
    release_by: int | None = None
    away: bool = False
    gone: bool = False


class Sessions:
    """All seats of one coordinator.

    Attributes:
        clock: ms; see the module.
    """

    def __init__(self, now: int) -> None:
        self.clock = 0
        self._last = now
        self._seats: dict[tuple[str, str], Seat] = {}
        self._order = itertools.count()
        self._ends: list[tuple[int, int, Seat]] = []
        """When to look whether a session has ended: one entry a seat."""
        self._waits: list[tuple[int, int, Seat, Held]] = []
        self._releases: list[tuple[int, int, Seat]] = []

    def advance(self, now: int) -> None:
        """Time passes."""
        self.clock += min(max(0, now - self._last), STEP_MAX)
        self._last = max(now, self._last)

    def find(self, group: str, member: str) -> Seat | None:
        """A member's seat."""
        return self._seats.get((group, member))

    def add(self, group: str, member: str, timeout: int) -> Seat:
        """A member is in, and was heard now."""
        self.remove(group, member)
        seat = Seat(group, member, self.clock, timeout)
        self._seats[group, member] = seat
        heapq.heappush(self._ends, (self.clock + timeout, next(self._order), seat))
        return seat

    def remove(self, group: str, member: str) -> Seat | None:
        """A member is out."""
        seat = self._seats.pop((group, member), None)
        if seat is not None:
            seat.gone = True
        return seat

    def everyone(self) -> list[Any]:
        """Whoever waits; nobody does any more."""
        waiting: list[Any] = []
        for seat in self._seats.values():
            if seat.held is not None:
                waiting.append(seat.held.token)
                seat.held = None
        return waiting

    def __len__(self) -> int:
        return len(self._seats)

    def hear(self, seat: Seat, timeout: int) -> None:
        """A heartbeat came."""
        seat.heard = self.clock
        seat.away = False
        if timeout < seat.timeout:
            heapq.heappush(self._ends, (self.clock + timeout, next(self._order), seat))
        seat.timeout = timeout

    def hold(self, seat: Seat, token: Any, wait: int) -> None:
        """A heartbeat waits for news."""
        seat.held = Held(token, self.clock + wait)
        heapq.heappush(self._waits, (seat.held.deadline, next(self._order), seat, seat.held))

    def release_by(self, seat: Seat, timeout: int | None) -> None:
        """A member has so many ms to release what it is to; None: nothing is to be released."""
        if timeout is None:
            seat.release_by = None
        elif seat.release_by is None:
            seat.release_by = self.clock + timeout
            heapq.heappush(self._releases, (seat.release_by, next(self._order), seat))

    def due_waits(self) -> Iterator[Seat]:
        """Seats whose heartbeat has waited for as long as it may."""
        while self._waits and self._waits[0][0] <= self.clock:
            _, _, seat, held = heapq.heappop(self._waits)
            if seat.held is held and not seat.gone:
                yield seat

    def ended(self) -> Iterator[Seat]:
        """Seats whose session has ended: each is told once, and is to be removed."""
        while self._ends and self._ends[0][0] <= self.clock:
            _, _, seat = heapq.heappop(self._ends)
            if seat.gone:
                continue
            end = seat.heard + seat.timeout
            if end <= self.clock:
                yield seat
            else:
                heapq.heappush(self._ends, (end, next(self._order), seat))

    def overdue_releases(self) -> Iterator[Seat]:
        """Seats that have not released in time what they were to: each is told once, and is to be removed."""
        while self._releases and self._releases[0][0] <= self.clock:
            at, _, seat = heapq.heappop(self._releases)
            if not seat.gone and seat.release_by == at:
                yield seat
