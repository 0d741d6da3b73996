"""The network of a simulated cluster: links that keep their order until they break, and everything that goes wrong.

Owns what is on its way, and which ways are open. One link for each (sender, receiver, lane). Never looks into what it
carries, and never knows what a node is: it is told who went and who came.

What a link does is what a ZeroMQ PUSH socket over TCP does to those who use it:

==================================== =================================================================================
when                                 what is on the link
==================================== =================================================================================
the way is cut                       waits at the sender, up to `WAITING_MAX`; what comes beyond is lost without a word
the way is open again                goes on in order, or a tail of it is lost: the connection had broken
the connection breaks                a tail is lost; some of it comes later, when nobody expects it
the receiver's process goes          what it had not taken is lost, or waits for the next process at that place
the sender's process goes            what waits is lost, and a tail of what is on its way
any time (`duplicates`)              comes a second time, much later
==================================== =================================================================================
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable

from zbroker.testing.timeline import MS, SECOND, Timeline

WAITING_MAX = 1000
"""Messages that wait at a sender for a way that is closed."""
REPLAYED = ("control", "data", "request")
"""Lanes on which something may come late."""
DOUBLED = ("control", "data")
"""Lanes on which something may come twice."""
LATE_MAX = 3 * SECOND

Deliver = Callable[[str, str, str, object], bool]


class Parcel:
    """One message on its way."""

    __slots__ = ("content", "gone", "size")

    def __init__(self, content: object, size: int) -> None:
        self.content = content
        self.size = size
        self.gone = False


class Link:
    """What one sends to another on one lane, in order."""

    __slots__ = ("flying", "lane", "last_due", "receiver", "sender", "waiting")

    def __init__(self, sender: str, receiver: str, lane: str) -> None:
        self.sender = sender
        self.receiver = receiver
        self.lane = lane
        self.flying: deque[Parcel] = deque()
        self.waiting: deque[Parcel] = deque()
        self.last_due = 0


class Network:
    """All links. See the module.

    Attributes:
        latency: least and most microseconds that a message takes.
        delays: microseconds more, by (sender, receiver).
        rates: bytes a second, by (sender, receiver), where it is less than can be noticed.
        duplicates: how likely a message comes a second time.
        cuts: (sender, receiver) between whom nothing passes.
        counters: what was lost, late and doubled.
    """

    def __init__(self, timeline: Timeline, rng: random.Random, deliver: Deliver) -> None:
        """
        Args:
            deliver: hands over (sender, receiver, lane, content); False where nobody is there to take it.
        """
        self.latency = (30, 300)
        self.delays: dict[tuple[str, str], int] = {}
        self.rates: dict[tuple[str, str], int] = {}
        self.duplicates = 0.0
        self.cuts: set[tuple[str, str]] = set()
        self.absent: set[str] = set()
        self.counters: Counter[str] = Counter()
        self._timeline = timeline
        self._rng = rng
        self._deliver = deliver
        self._links: dict[tuple[str, str, str], Link] = {}

    def is_open(self, sender: str, receiver: str) -> bool:
        """Whether messages pass in this direction."""
        return (sender, receiver) not in self.cuts

    def send(self, sender: str, receiver: str, lane: str, content: object, size: int = 100) -> None:
        """Sends; `size` in bytes counts where the rate is low."""
        link = self._links.get((sender, receiver, lane))
        if link is None:
            link = self._links[sender, receiver, lane] = Link(sender, receiver, lane)
        parcel = Parcel(content, size)
        if link.waiting or self._is_blocked(link):
            if len(link.waiting) >= WAITING_MAX:
                self.counters["over the limit"] += 1
            else:
                link.waiting.append(parcel)
        else:
            self._fly(link, parcel)

    # What goes wrong ---

    def cut(self, sender: str, receiver: str) -> None:
        """Nothing passes from one to the other, until `mend`."""
        self.cuts.add((sender, receiver))
        for link in self._between(sender, receiver):
            self._ground(link)

    def mend(self, sender: str | None = None, receiver: str | None = None) -> None:
        """Opens one direction, or all of them."""
        opened = sorted(self.cuts) if sender is None else [(sender, receiver or "")]
        for pair in opened:
            self.cuts.discard(pair)
        for pair in opened:
            for link in self._between(*pair):
                self._resume(link)

    def break_connection(self, a: str, b: str) -> None:
        """The connections between two break, and are made again."""
        for link in (*self._between(a, b), *self._between(b, a)):
            self._lose_tail(link, link.flying)

    def clear_conditions(self) -> None:
        """The network is as it should be; what is on its way stays on its way."""
        self.delays.clear()
        self.rates.clear()
        self.duplicates = 0.0
        self.mend()

    # Who is there ---

    def leave(self, name: str) -> None:
        """A process is gone."""
        self.absent.add(name)
        for link in self._links.values():
            if link.sender == name:
                link.waiting.clear()
                self._lose_tail(link, link.flying)
            elif link.receiver == name:
                taken = self._rng.randint(0, len(link.flying))
                for _ in range(taken):
                    link.flying.popleft().gone = True
                self._ground(link)

    def join(self, name: str) -> None:
        """A process is there, and takes what waited for whoever would be."""
        self.absent.discard(name)
        for link in list(self._links.values()):
            if link.receiver == name:
                self._resume(link)

    def forget_waiting(self, sender: str, receiver: str) -> None:
        """A socket is closed, and with it what it had not sent."""
        for link in self._between(sender, receiver):
            link.waiting.clear()

    # Within ---

    def _between(self, sender: str, receiver: str) -> list[Link]:
        return [
            link
            for link in self._links.values()
            if link.sender == sender and link.receiver == receiver
        ]

    def _is_blocked(self, link: Link) -> bool:
        return link.receiver in self.absent or (link.sender, link.receiver) in self.cuts

    def _fly(self, link: Link, parcel: Parcel) -> None:
        pair = (link.sender, link.receiver)
        least, most = self.latency
        takes = least + int((most - least) * self._rng.random() ** 3) + self.delays.get(pair, 0)
        begins = self._timeline.now
        rate = self.rates.get(pair)
        if rate is not None:
            begins = max(begins, link.last_due - takes)
            takes += parcel.size * SECOND // rate
        due = link.last_due = max(link.last_due, begins + takes)
        link.flying.append(parcel)
        self._timeline.at(due, lambda: self._arrive(link, parcel))

    def _arrive(self, link: Link, parcel: Parcel) -> None:
        if parcel.gone:
            return
        first = link.flying.popleft()
        assert first is parcel, "a link keeps its order"
        if not self._deliver(link.sender, link.receiver, link.lane, parcel.content):
            self.counters["nobody there"] += 1
        elif self.duplicates and link.lane in DOUBLED and self._rng.random() < self.duplicates:
            self.counters["doubled"] += 1
            self._come_late(link, parcel)

    def _ground(self, link: Link) -> None:
        """What is on its way waits at the sender instead."""
        while link.flying:
            parcel = link.flying.pop()
            parcel.gone = True
            link.waiting.appendleft(Parcel(parcel.content, parcel.size))
        link.last_due = 0

    def _resume(self, link: Link) -> None:
        if self._is_blocked(link) or not link.waiting:
            return
        if self._rng.random() < 0.5:
            self._lose_tail(link, link.waiting)
        while link.waiting:
            self._fly(link, link.waiting.popleft())

    def _lose_tail(self, link: Link, parcels: deque[Parcel]) -> None:
        keep = self._rng.randint(0, len(parcels))
        while len(parcels) > keep:
            parcel = parcels.pop()
            parcel.gone = True
            self.counters["lost"] += 1
            if link.lane in REPLAYED and self._rng.random() < 0.3:
                self._come_late(link, parcel)

    def _come_late(self, link: Link, parcel: Parcel) -> None:
        self.counters["late"] += 1
        self._timeline.after(
            self._rng.randint(MS, LATE_MAX), lambda: self._arrive_late(link, parcel.content)
        )

    def _arrive_late(self, link: Link, content: object) -> None:
        if not self._is_blocked(link):
            self._deliver(link.sender, link.receiver, link.lane, content)
