"""The links between nodes: a PULL a lane for what comes, an `Outgoing` a peer for what goes, one selector for the rest.

Owns the ports of both lanes (base + 2 and base + 3). Belongs to the reactor's thread. Never decides: what a message
says, whom to send to and what a dead peer means is the broker's.

Two lanes, so that a gigabyte of catch-up never delays a heartbeat.
"""

from __future__ import annotations

import ipaddress
import os
import selectors
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import zmq

from zbroker.errors import AddressInUse
from zbroker.node.outgoing import LANES, PORTS, Lane, Outgoing
from zbroker.node.resolver import Resolver
from zbroker.node.sockets import HANDSHAKE_MS, NOBLOCK, SMALL_FRAME
from zbroker.protocol.batch import Buffer
from zbroker.protocol.frames import Frame
from zbroker.units import Address

FRAMES_MAX = 80
"""Most frames in a message: envelope, head, and as many batches as an append carries, with some to spare."""
PEERS_MAX = 100
"""Most peers: each costs three sockets, and anybody can greet under a new name."""
BACKLOG = 1024


class Links:
    """All links of one node. No call blocks, but for a moment `close`.

    A reactor polls `sockets`, calls `on_tick` when that is due, takes `events` every turn and `received` of the lanes
    that are readable.

    Attributes:
        counters: what was dropped, by reason.
        due: when `on_tick` is wanted, None where it need not be; ms, monotonic.
        unsettled: lanes that were not read to the end, until a poller has looked at them.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        listen: str,
        port: int,
        peers: Mapping[str, Address],
        *,
        frame_max: int,
    ) -> None:
        """Binds both lanes, and connects to the peers as their addresses are known.

        Args:
            context: lives until after `close`.
            listen: numeric address to bind.
            port: this node's base port.
            peers: the other nodes' base addresses, by name; not this node's own.
            frame_max: largest frame that a peer sends, bytes; one of more than twice the size ends its connection.

        Raises:
            AddressInUse: one of the ports is taken, or the address is not one of this machine's.
        """
        self.counters: Counter[str] = Counter()
        self.due: int | None = None
        self.unsettled: set[zmq.Socket[bytes]] = set()
        self._context = context
        self._frame_max = frame_max
        self._listeners: dict[Lane, socket.socket] = {}
        self._pulls: dict[Lane, zmq.Socket[bytes]] = {}
        self._peers: dict[str, Outgoing] = {}
        self._selector = selectors.DefaultSelector()
        self._resolver = Resolver()
        self._selector.register(self._resolver, selectors.EVENT_READ, self._on_resolved)
        try:
            for lane in LANES:
                self._listeners[lane] = _listen(listen, port + PORTS[lane])
            self.reopen()
            for name, address in peers.items():
                self.connect(name, address.host, address.port)
        except BaseException:
            self.close(0)
            raise

    def reopen(self) -> None:
        """Ends every connection of the peers to this node; they come back by themselves.

        The last resort against a connection whose message never ends, as in `Sockets.reopen`. The ports stay listened
        on meanwhile: a refused connect would tell the peers that this node is gone.
        """
        self.unsettled.clear()
        for lane, listener in self._listeners.items():
            if lane in self._pulls:
                self._pulls[lane].close(0)
            self._pulls[lane] = _pull(self._context, listener, self._frame_max)

    def connect(self, node: str, host: str, port: int) -> None:
        """A node is reached at this base port from now on."""
        address = Address(host, port)
        peer = self._peers.get(node)
        if peer is not None:
            if peer.address != address:
                peer.move(address)
        elif len(self._peers) < PEERS_MAX:
            self._peers[node] = Outgoing(self._context, address, self._selector, self._resolver)
        else:
            self.counters["peers_refused"] += 1
        self._settle()

    def close(self, linger_ms: int) -> None:
        """Sends what is queued for up to `linger_ms` while the context lives, then closes."""
        for peer in self._peers.values():
            peer.close(linger_ms)
        self._peers.clear()
        for pull in self._pulls.values():
            pull.close(0)
        for listener in self._listeners.values():
            listener.close()
        self._resolver.close()
        self._selector.close()

    # Messages ---

    def send(self, node: str, lane: Literal["control", "data"], frames: Sequence[Buffer]) -> None:
        """Sends a message, whose frames must not change afterwards, or drops it where the lane has no room for it."""
        peer = self._peers.get(node)
        if peer is None or not peer.send(lane, frames):
            self.counters[f"{lane}_messages_dropped"] += 1

    def received(self, lane: Literal["control", "data"], most: int) -> Iterator[list[Frame]]:
        """Up to `most` messages that have arrived; small frames as bytes, larger ones where libzmq received them."""
        receive = self._pulls[lane].recv
        for _ in range(most):
            try:
                frame = receive(NOBLOCK, copy=False)
            except zmq.Again:
                return
            frames: list[Frame] = [_content(frame)]
            count = 1
            while frame.more:
                frame = receive(NOBLOCK, copy=False)
                count += 1
                if count <= FRAMES_MAX:
                    frames.append(_content(frame))
            if count > FRAMES_MAX:
                # No node sends it; a part of it would be another message than the one that was sent.
                self.counters["messages_of_too_many_frames"] += 1
                continue
            yield frames
        self.unsettled.add(self._pulls[lane])

    # Peers ---

    def pull(self, lane: Lane) -> zmq.Socket[bytes]:
        """Where a lane's messages arrive. `reopen` renews it."""
        return self._pulls[lane]

    def fileno(self) -> int:
        """Readable when `events` may have something."""
        return self._selector.fileno()

    def sockets(self) -> list[zmq.Socket[bytes] | int]:
        """What the reactor polls for reading: both lanes, and one descriptor for all else. `reopen` renews them."""
        return [*self._pulls.values(), self._selector.fileno()]

    def events(self, now: int) -> Iterator[tuple[str, Literal["gone", "up"]]]:
        """What the peers' ports did.

        Take them after `on_tick` too, whose probes may be answered at once.

        `gone`: a connect to the peer's control port was refused, so that its process is gone while its machine lives;
        repeated while it lasts, at most every 100 ms. `up`: the port accepts, for the first time or again; told once
        the control lane is connected, if that comes within a moment.
        """
        for key, _ in self._selector.select(0):
            take: Callable[[object, int], None] = key.data
            take(key.fileobj, now)
        self._settle()
        for name, peer in list(self._peers.items()):
            for event in peer.take_events():
                yield name, event

    def on_tick(self, now: int) -> None:
        """When `due` has come: probes and names. `events` may have news afterwards."""
        for peer in self._peers.values():
            peer.on_tick(now)
        self._settle()

    def _settle(self) -> None:
        self.due = min(
            (peer.due for peer in self._peers.values() if peer.due is not None), default=None
        )

    def _on_resolved(self, _: object, now: int) -> None:
        for host, addresses in self._resolver.answers():
            for peer in self._peers.values():
                if peer.address.host == host:
                    peer.on_resolved(addresses, now)


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket, which libzmq accepts from, and which outlives its socket in `reopen`."""
    ipv6 = ipaddress.ip_address(host).version == 6
    listener = socket.socket(socket.AF_INET6 if ipv6 else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if ipv6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        address = Address(host, port)
        raise AddressInUse(
            f"{address} cannot be bound: {error.strerror}; stop what uses it, or change the node's "
            "address in its configuration",
            address=str(address),
        ) from None
    # A connection that ends before it is accepted must not make libzmq wait for the next.
    listener.setblocking(False)
    return listener


def _pull(
    context: zmq.Context[zmq.Socket[bytes]], listener: socket.socket, frame_max: int
) -> zmq.Socket[bytes]:
    pull = context.socket(zmq.PULL)
    pull.set(zmq.LINGER, 0)
    # No limit by count. libzmq (4.3.5) aborts the process where a peer that sends heartbeats ends while the queue of
    # its messages is full. The reactor reads all the time, and leaders send no more than is credited.
    pull.set(zmq.RCVHWM, 0)
    pull.set(zmq.MAXMSGSIZE, 2 * frame_max)
    pull.set(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    host, port = listener.getsockname()[:2]
    pull.set(zmq.IPV6, ":" in host)
    pull.set(zmq.USE_FD, os.dup(listener.fileno()))
    pull.bind(f"tcp://{Address(host, port)}")
    return pull


def _content(frame: zmq.Frame) -> Frame:
    return frame.bytes if len(frame) <= SMALL_FRAME else frame.buffer
