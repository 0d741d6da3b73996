"""What a member's two threads share: which partitions it may hand out, and what of them the application has in hand.

Owns the one lock between them. The client's thread says what is assigned, revoked and lost; the application's thread
asks before it hands a batch out, says at each call that what it had in hand is done, and hears what has happened. Never
talks to the coordinator.

A record is *in hand* from when it is handed out until the application's next call; then it is *done*, and may be
committed. In an iteration each record is a call of its own: of the batch in hand all but the last record are done,
which the client's thread reads off the iterator (`flow`), so that it costs the iteration nothing; it looks at the clock
before each batch, and between its records where the client's thread tells it to (`interrupted`).

============================== =========================================================================
the client's thread            the application's thread
============================== =========================================================================
`assign`: may be handed out    hears `assigned`, where it wants to, before the first record of it
`revoke`: is not handed out    hears `revoked` at its next call, where it had some of it in hand or wants
any more                       to; answers once it has nothing to do with it any more
`lose`: nothing is handed out  hears why at its next call
============================== =========================================================================
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from math import inf
from typing import Literal, NamedTuple

from zbroker.client.committing import Position
from zbroker.client.records import Record, TopicPartition
from zbroker.errors import ZBrokerError


class Event(NamedTuple):
    """What the application is to hear of partitions."""

    kind: Literal["assigned", "revoked", "lost"]
    places: list[TopicPartition]


class Flow(NamedTuple):
    """A batch that is being iterated over."""

    place: TopicPartition
    records: list[Record]
    cursor: Iterator[Record]
    epoch: int


class Custody:
    """See above.

    Args:
        hears_assigned, hears_revoked: whether the application wants to hear of it, whatever it has in hand.
    """

    def __init__(self, *, hears_assigned: bool = False, hears_revoked: bool = False) -> None:
        self.owned: dict[TopicPartition, int] = {}
        """What may be handed out, and from which generation on its batches count."""
        self.leaving: dict[TopicPartition, int] = {}
        """The same of what is revoked and not released, because the application is to be heard first."""
        self.generations = itertools.count(1)
        self.events: deque[Event] = deque()
        self.error: ZBrokerError | None = None
        """Why the member is out; the application's next call raises it."""
        self.final = False
        """Whether every further call raises it, too: the member does not join again."""
        self.fence_at = -inf
        """The monotonic time from which nothing is handed out, unless a heartbeat moves it on."""
        self.idle_since: float | None = None
        """When the application's last call ended; None while it is in one, or has made none."""
        self.interrupted = False
        """Whether an iteration is to look, before its next record, at what there is to hear or to hold back."""
        self.flow: Flow | None = None
        self._hears_assigned = hears_assigned
        self._hears_revoked = hears_revoked
        self._lock = threading.Lock()
        self._hand: set[TopicPartition] = set()
        self._done: dict[TopicPartition, Position] = {}
        self._noted: tuple[Flow | None, int] = (None, 0)
        """How far an iteration had come when the application itself said what is done."""
        self._seen: tuple[Flow | None, int] = (None, 0)
        """How far an iteration had come at the last look."""

    # The client's thread ---

    def assign(self, places: Iterable[TopicPartition]) -> None:
        """These may be handed out from now on."""
        with self._lock:
            found = list(places)
            for place in found:
                self._done.pop(place, None)
                self.owned[place] = next(self.generations)
            if self._hears_assigned:
                self.events.append(Event("assigned", found))
                self.interrupted = True

    def revoke(self, places: Iterable[TopicPartition]) -> list[TopicPartition]:
        """Nothing more of these is handed out; answers those that the application has nothing to do with."""
        free, busy = [], []
        with self._lock:
            for place in places:
                base = self.owned.pop(place, 0)
                unheard = self._unhear(place)
                if place in self._hand or (self._hears_revoked and not unheard):
                    busy.append(place)
                    self.leaving[place] = base
                else:
                    free.append(place)
            if busy:
                self.events.append(Event("revoked", busy))
                self.interrupted = True
        return free

    def lose(self, error: ZBrokerError | None, places: Iterable[TopicPartition]) -> None:
        """The member is out: nothing of what it held is handed out, or done, any more."""
        with self._lock:
            lost = [place for place in places if not self._unhear(place)]
            self.owned.clear()
            self.leaving.clear()
            self._done.clear()
            self._hand.clear()
            self.events.clear()
            self.fence_at = -inf
            self.interrupted = True
            if error is not None:
                self.error = error
                self.events.append(Event("lost", lost))

    def positions(self) -> dict[TopicPartition, Position]:
        """What is done, of what is held."""
        with self._lock:
            found = dict(self._done)
            flow, noted = self.flow, self._noted
        if flow is not None:
            left = flow.cursor.__length_hint__()  # type: ignore[attr-defined]
            if noted[0] is flow and noted[1] == left:
                return found  # until it goes on, what the application said stands
            handed = len(flow.records) - left
            # The last one is in hand, and so it is where to go on.
            for record in flow.records[max(0, handed - 1) : handed]:
                if handed > 1:
                    found[flow.place] = Position(record.offset, flow.epoch)
        return found

    def iterates_on(self) -> bool:
        """Whether an iteration has handed out something since the last look: each record is a call."""
        flow = self.flow
        left = 0 if flow is None else flow.cursor.__length_hint__()  # type: ignore[attr-defined]
        before, self._seen = self._seen, (flow, left)
        return flow is not None and (before[0] is not flow or before[1] != left)

    def begin_at(self, place: TopicPartition, position: Position) -> None:
        """Where a partition begins, of which nothing is committed: all before that is as good as done."""
        with self._lock:
            self._done.setdefault(place, position)

    def _unhear(self, place: TopicPartition) -> bool:
        """Whether the application has not heard yet that it was assigned; then it never will."""
        for event in self.events:
            if event.kind == "assigned" and place in event.places:
                event.places.remove(place)
                return True
        return False

    # The application's thread ---

    def call(self, done: dict[TopicPartition, Position], rest: TopicPartition | None) -> None:
        """The application calls: what it had in hand is done, but for the rest of one batch."""
        self.idle_since = None
        with self._lock:
            self.flow = None
            self._noted = (None, 0)
            for place, position in done.items():
                if place in self.owned or place in self.leaving:
                    self._done[place] = position
            self._hand.clear()
            if rest is not None and rest in self.owned:
                self._hand.add(rest)

    def take(self, place: TopicPartition, generation: int, now: float, *, hand: bool) -> bool:
        """Whether what is ready of a partition counts; with `hand`, it is in hand then."""
        with self._lock:
            base = self.owned.get(place)
            if base is None or generation < base or now >= self.fence_at:
                return False
            if hand:
                self._hand.add(place)
            return True

    def note(self, done: dict[TopicPartition, Position]) -> None:
        """The application says itself that these are done."""
        flow = self.flow
        with self._lock:
            if flow is not None and flow.place in done:
                self._noted = (flow, flow.cursor.__length_hint__())  # type: ignore[attr-defined]
            for place, position in done.items():
                if place in self.owned or place in self.leaving:
                    self._done[place] = position

    def base(self, place: TopicPartition) -> int | None:
        """Since which generation a partition is held; None where it is not."""
        return self.owned.get(place) or self.leaving.get(place)

    def next_event(self) -> Event | None:
        """What the application is to hear next."""
        with self._lock:
            while self.events:
                event = self.events.popleft()
                if event.places or event.kind == "lost":
                    return event
            self.interrupted = False
        return None

    def finish(self, places: Iterable[TopicPartition]) -> None:
        """The application has nothing to do any more with partitions whose `revoked` it heard."""
        with self._lock:
            for place in places:
                self.leaving.pop(place, None)

    def suspended(self, now: float) -> bool:
        """Whether nothing may be handed out: the session may be over."""
        return now >= self.fence_at
