"""The node's loop: one thread that owns the sockets, and calls the broker with what comes and with the time.

Owns the order of a turn: completions first, for they free what others wait for, then requests, then subscriptions,
each at most so many a turn that none starves the others, then what is due by time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import zmq

from zbroker.broker.broker import Broker
from zbroker.node.memory import MemoryGuard
from zbroker.node.sockets import Sockets
from zbroker.node.storage import ThreadedStorage

REQUESTS_A_TURN = 64
SUBSCRIPTIONS_A_TURN = 256
TICK_MS = 100


class Reactor:
    """Runs a broker until it has stopped or failed."""

    def __init__(
        self,
        broker: Broker,
        sockets: Sockets,
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
        self._storage = storage
        self._stop_requested = stop_requested
        self._wake_fd = wake_fd
        self._on_tick = on_tick
        self._memory = memory

    def run(self, *, stop_timeout_ms: int) -> None:
        """Turns until the broker has stopped or failed, or stopping took longer than it may."""
        broker, sockets, storage = self._broker, self._sockets, self._storage
        poller = self._new_poller()
        now = monotonic_ms()
        next_tick, deadline = now, None
        broker.start(now, wall_ms())
        while broker.state not in ("stopped", "failed"):
            ready = {socket for socket, _ in poller.poll(max(0, next_tick - now))}
            now = monotonic_ms()
            for completion in storage.completions():
                broker.on_event(completion, now)
            if sockets.router in ready:
                wall = wall_ms()
                for client, frames in sockets.requests(REQUESTS_A_TURN, now):
                    broker.on_message(client, frames, now, wall)
            if sockets.xpub in ready:
                for subject in sockets.subscriptions(SUBSCRIPTIONS_A_TURN):
                    broker.on_subscribe(subject)
            if now >= next_tick:
                next_tick = now + TICK_MS
                broker.on_tick(now, wall_ms())
                self._on_tick()
                if self._memory.is_exceeded():
                    sockets.reopen()
                    self._memory.settle()
                    poller = self._new_poller()
            if self._wake_fd in ready:
                os.read(self._wake_fd, 64)
            if deadline is None and self._stop_requested():
                deadline = now + stop_timeout_ms
                broker.stop()
            if deadline is not None and now >= deadline:
                return

    def _new_poller(self) -> zmq.Poller:
        poller = zmq.Poller()
        poller.register(self._sockets.router, zmq.POLLIN)
        poller.register(self._sockets.xpub, zmq.POLLIN)
        poller.register(self._storage.fileno(), zmq.POLLIN)
        poller.register(self._wake_fd, zmq.POLLIN)
        return poller


def monotonic_ms() -> int:
    """Milliseconds of a clock that never jumps: for what is due."""
    return time.monotonic_ns() // 1_000_000


def wall_ms() -> int:
    """Milliseconds since the epoch: for stamps only."""
    return time.time_ns() // 1_000_000
