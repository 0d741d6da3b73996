"""The way to one peer: a PUSH a lane, the addresses that it may be at, and what its control port is known to do.

Owns the peer's two sockets, their monitor and the probe under way. Never receives, and never blocks: what cannot be
sent now is lost, and whoever needs it sends it again.
"""

from __future__ import annotations

import selectors
import socket
import struct
from collections.abc import Sequence
from typing import Literal, get_args

import zmq

from zbroker.node.probes import Event, Probe, Watch
from zbroker.node.resolver import Resolver, is_numeric
from zbroker.node.sockets import COPY_MAX, HANDSHAKE_MS, MORE, NOBLOCK
from zbroker.protocol.batch import Buffer
from zbroker.units import Address

Lane = Literal["control", "data"]
LANES: tuple[Lane, ...] = get_args(Lane)
PORTS: dict[Lane, int] = {"control": 2, "data": 3}
"""A lane's port above the node's base port."""

QUEUE_MAX = 1000
"""Messages that may wait for one lane; leaders bound the bytes by what followers have credited."""
RECONNECT_MS, RECONNECT_MAX_MS = 20, 200
CONNECT_TIMEOUT_MS = 1000
"""How long a TCP connect may take: left alone, the system repeats it ever more rarely, up to minutes."""
HEARTBEAT_MS, HEARTBEAT_TIMEOUT_MS, HEARTBEAT_TTL_MS = 1000, 3000, 10_000
"""ZMTP's own heartbeats: they end connections to and from machines that are gone without a word."""
RESOLVE_MS = 2000
"""How often a name is looked up while its node is not linked."""

LINKED = int(zmq.EVENT_HANDSHAKE_SUCCEEDED)
LOST = (int(zmq.EVENT_DISCONNECTED), int(zmq.EVENT_CONNECT_RETRIED))
_EVENT = struct.Struct("=Hi")


class Outgoing:
    """One peer's sockets, connected as soon as its numeric address is known.

    Attributes:
        address: where the peer is, by its base port.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        address: Address,
        selector: selectors.BaseSelector,
        resolver: Resolver,
    ) -> None:
        self.address = address
        self._events: list[Event] = []
        self._selector = selector
        self._resolver = resolver
        self._watch = Watch()
        self._probe: Probe | None = None
        self._hosts: tuple[str, ...] = ()
        self._host: str | None = None
        self._home: str | None = None
        self._resolve_at: int | None = None
        self._endpoints: dict[Lane, str] = {}
        self._pushes: dict[Lane, zmq.Socket[bytes]] = {lane: _push(context) for lane in LANES}
        self._monitor = _monitor(context, self._pushes["control"])
        self._monitor_fd = int(self._monitor.get(zmq.FD))
        selector.register(self._monitor_fd, selectors.EVENT_READ, self._on_monitor)
        # libzmq makes the descriptor readable only for a reader that has found nothing before.
        self._on_monitor(self._monitor_fd, 0)
        self.move(address)

    def move(self, address: Address) -> None:
        """The peer is at this address from now on; what is known of its port is forgotten."""
        self.address = address
        self._end_probe()
        self._disconnect()
        self._watch = Watch()
        self._hosts, self._host, self._home = (), None, None
        if is_numeric(address.host):
            self._resolve_at = None
            self._hosts = (address.host,)
            self._connect(address.host)
        else:
            self._resolve_at = 0

    def send(self, lane: Lane, frames: Sequence[Buffer]) -> bool:
        """Sends a message that must not change afterwards; whether it is on its way."""
        send = self._pushes[lane].send
        last = len(frames) - 1
        for number, frame in enumerate(frames):
            flags = MORE if number < last else NOBLOCK
            try:
                if len(frame) <= COPY_MAX:
                    send(frame, flags)
                else:
                    send(_received(frame) or frame, flags, copy=False)
            except zmq.Again:
                if number == 0:
                    return False
                # The lane was lost within the message: libzmq forgets the rest, but has to see it to its end.
        return True

    def close(self, linger_ms: int) -> None:
        """Sends what is queued for up to `linger_ms` while the context lives, then closes."""
        self._end_probe()
        self._selector.unregister(self._monitor_fd)
        self._pushes["control"].disable_monitor()
        for push in self._pushes.values():
            push.close(linger_ms)
        self._monitor.close(0)

    # Time and names ---

    @property
    def due(self) -> int | None:
        """When `on_tick` is wanted, None while nothing is waited for; ms, monotonic."""
        due, resolve_at = self._watch.due, self._resolve_at
        if resolve_at is None or self._watch.linked:
            return due
        return resolve_at if due is None else min(due, resolve_at)

    def on_tick(self, now: int) -> None:
        """Looks the name up, begins a probe and gives it up, when they are due."""
        watch = self._watch
        if self._resolve_at is not None and now >= self._resolve_at and not watch.linked:
            self._resolve_at = now + RESOLVE_MS
            self._resolver.ask(self.address.host)
        if watch.due is None or now < watch.due:
            return
        if watch.asking:
            self._end_probe()
            self._take(watch.on_outcome("nothing", now))
            return
        watch.begin(now)
        port = self.address.port + PORTS["control"]
        self._probe = Probe(
            self._selector,
            [Address(host, port) for host in self._hosts],
            home=self._home,
            on_ready=self._on_probe,
        )
        self._conclude(now)

    def on_resolved(self, hosts: tuple[str, ...], now: int) -> None:
        """The peer's name was looked up; no hosts where it is not known, and then it stays where it was."""
        # In any order: name servers turn it round.
        if not hosts or set(hosts) == set(self._hosts) or self._watch.linked:
            return
        self._end_probe()
        self._hosts, self._home = hosts, None
        self._connect(hosts[0])
        if len(hosts) > 1:
            # All are asked which of them is listened on; libzmq tries the first one only.
            self._watch.on_lost(now)

    def take_events(self) -> list[Event]:
        """What the port did since the last call."""
        events, self._events = self._events, []
        return events

    # Within ---

    def _connect(self, host: str) -> None:
        """Connects both lanes to a numeric address; what was queued for another is dropped."""
        self._disconnect()
        self._host = host
        for lane, push in self._pushes.items():
            self._endpoints[lane] = f"tcp://{Address(host, self.address.port + PORTS[lane])}"
            push.set(zmq.IPV6, ":" in host)
            try:
                push.connect(self._endpoints[lane])
            except zmq.ZMQError:  # no address at all, such as one with a zone that cannot be
                del self._endpoints[lane]

    def _disconnect(self) -> None:
        for lane, endpoint in self._endpoints.items():
            self._pushes[lane].disconnect(endpoint)
        self._endpoints.clear()

    def _on_monitor(self, _: object, now: int) -> None:
        while True:
            try:
                frames = self._monitor.recv_multipart(NOBLOCK)
            except zmq.Again:
                return
            number, _value = _EVENT.unpack(frames[0])
            if number != LINKED:
                self._watch.on_lost(now)
            elif self._is_open("control"):
                self._end_probe()
                self._home = self._host
                self._take(self._watch.on_linked(now))

    def _is_open(self, lane: Lane) -> bool:
        """Whether a message could be sent. It cannot where the link that was told of is one that `_connect` has ended.

        Asking makes the socket take what the I/O thread has for it; a send looks no more than once a millisecond.
        """
        return bool(int(self._pushes[lane].get(zmq.EVENTS)) & zmq.POLLOUT)

    def _on_probe(self, connection: socket.socket, now: int) -> None:
        if self._probe is not None:
            self._probe.on_ready(connection)
            self._conclude(now)

    def _conclude(self, now: int) -> None:
        """Takes the probe's answer, if it is there."""
        if self._probe is None or self._probe.answer is None:
            return
        outcome, host = self._probe.answer
        self._probe = None
        # The link may be there already: then the answer is late, and what would be done for it only harms.
        self._on_monitor(None, now)
        if not self._watch.asking:
            return
        self._take(self._watch.on_outcome(outcome, now))
        if host is not None:
            self._home = host
            if host != self._host or self._watch.is_back():
                # At once, where libzmq would wait until its next attempt.
                self._connect(host)

    def _end_probe(self) -> None:
        if self._probe is not None:
            self._probe.close()
            self._probe = None

    def _take(self, event: Event | None) -> None:
        if event is not None:
            self._events.append(event)


def _push(context: zmq.Context[zmq.Socket[bytes]]) -> zmq.Socket[bytes]:
    push = context.socket(zmq.PUSH)
    push.set(zmq.LINGER, 0)
    push.set(zmq.SNDHWM, QUEUE_MAX)
    # Nothing is queued for a peer that is not there: its next process would get the oldest messages of a full queue,
    # which are meant for nobody any more, and miss the newest, such as the greeting.
    push.set(zmq.IMMEDIATE, 1)
    push.set(zmq.RECONNECT_IVL, RECONNECT_MS)
    push.set(zmq.RECONNECT_IVL_MAX, RECONNECT_MAX_MS)
    push.set(zmq.CONNECT_TIMEOUT, CONNECT_TIMEOUT_MS)
    push.set(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    push.set(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
    push.set(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
    push.set(zmq.HEARTBEAT_TTL, HEARTBEAT_TTL_MS)
    return push


def _monitor(context: zmq.Context[zmq.Socket[bytes]], push: zmq.Socket[bytes]) -> zmq.Socket[bytes]:
    """What happens to a PUSH's connection, as messages."""
    endpoint = f"inproc://zbroker-link-{int(push.get(zmq.FD))}"
    push.monitor(endpoint, LINKED | sum(LOST))
    monitor = context.socket(zmq.PAIR)
    monitor.set(zmq.LINGER, 0)
    # libzmq's I/O thread, which carries every heartbeat, would wait where a full queue takes no event.
    monitor.set(zmq.RCVHWM, 0)
    monitor.connect(endpoint)
    return monitor


def _received(buffer: Buffer) -> zmq.Frame | None:
    """The frame that a buffer is the whole of, if it was received as one: sent on without a word to the collector."""
    frame: object = getattr(buffer, "obj", None)
    return frame if isinstance(frame, zmq.Frame) and len(frame) == len(buffer) else None
