"""The node's loop: one thread that owns the sockets, and calls the broker with what comes and with the time.

Owns the order of a turn: completions first, for they free what others wait for, then what other nodes say, then
requests, then subscriptions, each at most so many a turn that none starves the others, then what is due by time, and at
last the small writes that all of this has brought about.
What is due about every 100 ms is done when something else wakes the node, such as a heartbeat, as far as that comes in
time: an idle node wakes up once for both.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection

import zmq

from zbroker.broker.broker import Broker
from zbroker.node.links import Links
from zbroker.node.memory import MemoryGuard
from zbroker.node.outgoing import Lane
from zbroker.node.poller import Poller
from zbroker.node.sockets import Sockets
from zbroker.node.storage import ThreadedStorage

REQUESTS_A_TURN = 64
A_TURN: dict[Lane, int] = {"control": 256, "data": 32}
"""Messages of peers, by lane."""
SUBSCRIPTIONS_A_TURN = 256
TICK_MIN_MS, TICK_MAX_MS = 80, 120
"""How long after a tick whatever wakes the node brings the next one, and when it comes by itself."""


class Reactor:
    """Runs a broker until it has stopped or failed."""

    def __init__(
        self,
        broker: Broker,
        sockets: Sockets,
        links: Links,
        storage: ThreadedStorage,
        *,
        stop_requested: Callable[[], bool],
        wake_fd: int,
        on_tick: Callable[[], None],
        memory: MemoryGuard,
    ) -> None:
        """
        Args:
            stop_requested: whether the node should stop in order.
            wake_fd: readable when it should look at once, such as after a signal.
            on_tick: called about every 100 ms, after the broker.
            memory: says when connections hold more than they may.
        """
        self._broker = broker
        self._sockets = sockets
        self._links = links
        self._storage = storage
        self._stop_requested = stop_requested
        self._wake_fd = wake_fd
        self._on_tick = on_tick
        self._memory = memory

    def run(self, *, stop_timeout_ms: int) -> None:
        """Turns until the broker has stopped or failed, or stopping took longer than it may."""
        broker, sockets, links = self._broker, self._sockets, self._links
        storage = self._storage
        poller = self._new_poller()
        now = ticked = monotonic_ms()
        deadline = None
        broker.start(now, wall_ms())
        self._write_quickly(now)
        now = monotonic_ms()
        while broker.state not in ("stopped", "failed"):
            ready = poller.poll(max(0, self._next(ticked) - now), self._unsettled())
            now = monotonic_ms()
            if storage.fileno() in ready:
                for completion in storage.completions():
                    broker.on_event(completion, now)
            if links.fileno() in ready:
                self._look_at_links(now)
            for lane, most in A_TURN.items():
                if links.pull(lane) in ready:
                    for frames in links.received(lane, most):
                        broker.on_peer(frames, now, wall_ms())
            if sockets.router in ready:
                wall = wall_ms()
                for client, frames in sockets.requests(REQUESTS_A_TURN, now):
                    broker.on_message(client, frames, now, wall)
            if sockets.xpub in ready:
                for subject in sockets.subscriptions(SUBSCRIPTIONS_A_TURN):
                    broker.on_subscribe(subject)
            if links.due is not None and now >= links.due:
                links.on_tick(now)
                self._look_at_links(now)
            if now >= ticked + TICK_MIN_MS:
                ticked = now
                broker.on_tick(now, wall_ms())
                self._on_tick()
                if self._memory.is_exceeded(now):
                    sockets.reopen()
                    links.reopen()
                    self._memory.settle()
                    poller.close()
                    poller = self._new_poller()
            elif broker.due is not None and now >= broker.due:
                broker.on_tick(now, wall_ms())
            if self._wake_fd in ready:
                os.read(self._wake_fd, 64)
            if deadline is None and self._stop_requested():
                deadline = now + stop_timeout_ms
                broker.stop()
            if deadline is not None and now >= deadline:
                break
            self._write_quickly(now)
            now = monotonic_ms()
        poller.close()

    def _next(self, ticked: int) -> int:
        """When something is due by time, monotonic ms."""
        earliest = ticked + TICK_MAX_MS
        for due in (self._broker.due, self._links.due):
            if due is not None and due < earliest:
                earliest = due
        return earliest

    def _unsettled(self) -> Collection[zmq.Socket[bytes]]:
        """Sockets in which messages may wait though no descriptor says so."""
        unsettled = [*self._sockets.unsettled, *self._links.unsettled]
        self._sockets.unsettled.clear()
        self._links.unsettled.clear()
        return unsettled

    def _write_quickly(self, now: int) -> None:
        """What is quick is done, and what follows from it, and what is quick of that."""
        while done := self._storage.run_quick():
            for completion in done:
                self._broker.on_event(completion, now)

    def _look_at_links(self, now: int) -> None:
        """What the links to other nodes show."""
        for node, event in self._links.events(now):
            self._broker.on_link(node, event, now)

    def _new_poller(self) -> Poller:
        poller = Poller()
        for each in (
            self._sockets.router,
            self._sockets.xpub,
            *self._links.sockets(),
            self._storage.fileno(),
            self._wake_fd,
        ):
            poller.register(each)
        return poller


def monotonic_ms() -> int:
    """Milliseconds of a clock that never jumps: for what is due."""
    return time.monotonic_ns() // 1_000_000


def wall_ms() -> int:
    """Milliseconds since the epoch: for stamps only."""
    return time.time_ns() // 1_000_000
