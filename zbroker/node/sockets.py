"""The node's two client sockets, and the transport that the broker sends through.

Owns ROUTER (base port) and XPUB (base port + 1), who subscribed to what, and how much waits for whom. Never blocks,
and never holds back a message from everyone because one client does not read: what cannot be sent is dropped and
counted, for the log is the truth and clients ask again.
"""

from __future__ import annotations

import ipaddress
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator

import zmq

from zbroker.broker.ports import Conversation
from zbroker.errors import AddressInUse
from zbroker.protocol import frames as wire
from zbroker.protocol.batch import Buffer
from zbroker.protocol.frames import Frame
from zbroker.protocol.messages import ClusterChange, ErrorReply, Push, Reply

REPLIES_MAX = 1000
"""Replies that may wait for one client before more are dropped."""
PUSHES_MAX = 200
"""Pushed messages that may wait for one subscriber before more are dropped; it fetches what it missed."""
PUSHED_BATCH_MAX = 640 << 10
"""Larger batches are announced by a beacon and fetched: so a subscriber that does not read holds 125 MiB at most."""
SMALL_FRAME = 1024
"""Frames up to this size are copied out of libzmq's buffers: a head, or a batch that is not worth a view."""
COPY_MAX = 128 << 10
"""Bodies up to this size are copied into the message: cheaper than to be told when a larger one is sent."""
REBIND_S = 5.0
"""How long a port may take to be free again after its socket was closed."""
HANDSHAKE_MS = 3000
"""How long a TCP connection may stay silent before it is dropped."""
SEEN_MAX_MS = 60_000
"""How long a silent client counts towards the limit on clients."""
SETTLE_S = 0.01
"""Seconds from one look at what all clients have taken to the next: it costs as much as there are clients."""

# Plain numbers: zmq's own are enumerations, and combining those costs more than sending.
NOBLOCK = int(zmq.NOBLOCK)
MORE = int(zmq.NOBLOCK | zmq.SNDMORE)


class Sockets:
    """ROUTER and XPUB of one node, bound; the broker's `Transport`."""

    def __init__(self, host: str, port: int, *, frame_max: int, clients_max: int) -> None:
        """Binds both sockets.

        Raises:
            AddressInUse: one of the ports is taken, or the address is not one of this machine's.
        """
        self._context = zmq.Context(io_threads=1)
        self._context.set(zmq.MAX_SOCKETS, 1023)
        self._host, self._port = host, port
        self._frame_max = frame_max
        self._clients_max = clients_max
        self._seen: OrderedDict[bytes, int] = OrderedDict()
        self._unread: dict[bytes, deque[tuple[zmq.MessageTracker, int]]] = {}
        self._unread_total = 0
        self._settled_at = 0.0
        self._prefixes: Counter[bytes] = Counter()
        self._wanted: dict[bytes, bool] = {}
        self.unsettled: set[zmq.Socket[bytes]] = set()
        """Sockets that were sent through or not read to the end, until a poller has looked at them."""
        self.counters: Counter[str] = Counter()
        """What was dropped and refused, by reason."""
        try:
            self.router = self._open_router()
            self.xpub = self._open_xpub()
        except BaseException:
            self._context.destroy(linger=0)
            raise

    @property
    def context(self) -> zmq.Context[zmq.Socket[bytes]]:
        """What the node's other sockets are made in; it ends in `close`."""
        return self._context

    def reopen(self) -> None:
        """Closes both sockets and binds them anew; every connection ends, and clients come back by themselves.

        The last resort against a connection whose message never ends: libzmq collects its frames without any limit,
        shows them to nobody, and has no way to end one connection of a socket.
        """
        self.router.close(linger=0)
        self.xpub.close(linger=0)
        self._seen.clear()
        self._unread.clear()
        self._unread_total = 0
        self._prefixes.clear()
        self._wanted.clear()
        self.unsettled.clear()
        self.counters["sockets_reopened"] += 1
        deadline = time.monotonic() + REBIND_S
        while True:
            # libzmq closes in the background: the ports are free a moment later.
            try:
                if self.router.closed:
                    self.router = self._open_router()
                self.xpub = self._open_xpub()
            except AddressInUse:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.005)
            else:
                return

    def close(self, linger_ms: int) -> None:
        """Sends what is queued for up to `linger_ms`, then closes."""
        self._context.destroy(linger=linger_ms)

    # Receiving ---

    def requests(self, most: int, now: int) -> Iterator[tuple[bytes, list[Frame]]]:
        """Up to `most` requests that have arrived: client and frames, the routing id apart."""
        receive = self.router.recv
        for _ in range(most):
            try:
                frame = receive(NOBLOCK, copy=False)
            except zmq.Again:
                return
            frames: list[Frame] = [frame.bytes]
            while frame.more:
                frame = receive(NOBLOCK, copy=False)
                if len(frames) <= wire.FRAMES_MAX + 1:
                    # A batch is stamped where libzmq received it, and sent on to subscribers from there.
                    frames.append(frame.bytes if len(frame) <= SMALL_FRAME else frame.buffer)
            client = bytes(frames.pop(0))
            if self._admit(client, now):
                yield client, frames
            else:
                self._turn_away(client, frames)
        self.unsettled.add(self.router)

    def subscriptions(self, most: int) -> Iterator[bytes]:
        """Subjects that were newly subscribed to; endings are taken note of on the way."""
        for _ in range(most):
            try:
                message = self.xpub.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            if message[:1] == b"\x01":
                self._prefixes[message[1:]] += 1
                self._wanted.clear()
                yield message[1:]
            elif message[:1] == b"\x00":
                self._prefixes[message[1:]] -= 1
                if self._prefixes[message[1:]] <= 0:
                    del self._prefixes[message[1:]]
                self._wanted.clear()
        self.unsettled.add(self.xpub)

    # The broker's Transport ---

    def reply(self, to: Conversation, message: Reply, body: Buffer | None = None) -> None:
        """Sends a reply, or drops it where the client is gone or does not read."""
        frames: list[Buffer] = (
            [to.client, b"", wire.encode(message)]
            if to.delimited
            else [to.client, wire.encode(message)]
        )
        send = self.router.send
        self.unsettled.add(self.router)
        try:
            for frame in frames[:-1]:
                send(frame, MORE)
            if body is None:
                send(frames[-1], NOBLOCK)
            elif len(body) <= COPY_MAX:
                send(frames[-1], MORE)
                send(body, NOBLOCK)
            else:
                send(frames[-1], MORE)
                self._send_large(to.client, body)
        except zmq.Again:
            self.counters["replies_dropped_slow"] += 1
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self.counters["replies_dropped_gone"] += 1
            self._forget(to.client)

    def publish(
        self, subject: bytes, head: Push | ClusterChange, batch: Buffer | None = None
    ) -> None:
        """Pushes to those who subscribed; those who do not read miss it."""
        send = self.xpub.send
        self.unsettled.add(self.xpub)
        send(subject, MORE)
        if batch is None or len(batch) > PUSHED_BATCH_MAX:
            send(wire.encode(head), NOBLOCK)
            return
        send(wire.encode(head), MORE)
        received: object = getattr(batch, "obj", None)
        if isinstance(received, zmq.Frame):
            send(received, NOBLOCK, copy=False)
        else:
            send(batch, NOBLOCK)

    def wanted(self, subject: bytes) -> bool:
        """Whether anybody subscribed to the subject or a prefix of it."""
        wanted = self._wanted.get(subject)
        if wanted is None:
            wanted = any(subject.startswith(prefix) for prefix in self._prefixes)
            self._wanted[subject] = wanted
        return wanted

    def unread(self, client: bytes | None) -> int:
        """Bytes of chunks that a client, or (None) all together, have yet to take."""
        if client is None:
            self._settle_all()
            return self._unread_total
        return self._settle(client)

    def client_count(self) -> int:
        """How many clients have spoken lately."""
        return len(self._seen)

    def subscription_count(self) -> int:
        """How many subscriptions there are."""
        return self._prefixes.total()

    # Within ---

    def _send_large(self, client: bytes, body: Buffer) -> None:
        """Sends a body without copying it, and notes how much the client has yet to take."""
        tracker = self.router.send(body, NOBLOCK, copy=False, track=True)
        assert tracker is not None
        self._unread.setdefault(client, deque()).append((tracker, len(body)))
        self._unread_total += len(body)

    def _settle(self, client: bytes) -> int:
        """Strikes off what a client has taken, or will never take; answers what is left."""
        unread = self._unread.get(client)
        if unread is None:
            return 0
        while unread and unread[0][0].done:
            self._unread_total -= unread.popleft()[1]
        if not unread:
            del self._unread[client]
        return sum(size for _, size in unread)

    def _settle_all(self) -> None:
        """Also of those who ask for nothing more: a client that is gone must not count for ever."""
        if time.monotonic() >= self._settled_at + SETTLE_S:
            for client in list(self._unread):
                self._settle(client)
            self._settled_at = time.monotonic()

    def _admit(self, client: bytes, now: int) -> bool:
        """Whether the client is among as many as are allowed; silent ones make room."""
        seen = self._seen
        if client not in seen and len(seen) >= self._clients_max:
            oldest, last = next(iter(seen.items()))
            if now - last < SEEN_MAX_MS:
                return False
            del seen[oldest]
        seen[client] = now
        seen.move_to_end(client)
        return True

    def _turn_away(self, client: bytes, frames: list[Frame]) -> None:
        self.counters["clients_refused"] += 1
        delimited = len(frames) > 1 and not frames[0]
        to = Conversation(
            client, delimited, wire.request_id(frames[1 if delimited else 0]) if frames else 0
        )
        message = f"{self._clients_max} clients are connected, and the node takes no more (limits: clients)"
        self.reply(to, ErrorReply(id=to.id, code="overloaded", message=message, hint="retry"))

    def _forget(self, client: bytes) -> None:
        self._seen.pop(client, None)
        self._unread_total -= sum(size for _, size in self._unread.pop(client, ()))

    def _open_router(self) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.ROUTER)
        socket.set(zmq.ROUTER_MANDATORY, 1)
        socket.set(zmq.SNDHWM, REPLIES_MAX)
        return self._bind(socket, self._port)

    def _open_xpub(self) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.XPUB)
        socket.set(zmq.XPUB_VERBOSER, 1)
        socket.set(zmq.SNDHWM, PUSHES_MAX)
        return self._bind(socket, self._port + 1)

    def _bind(self, socket: zmq.Socket[bytes], port: int) -> zmq.Socket[bytes]:
        socket.set(zmq.LINGER, 0)
        # Without a limit on what waits to be received: where the queue is full, a connection that sends ZMTP's pings
        # and ends takes the whole process with it (libzmq 4.3.5, an assertion). `MemoryGuard` bounds it instead.
        socket.set(zmq.RCVHWM, 0)
        # What is only a little too large is answered by the broker; what is more ends the connection unread.
        socket.set(zmq.MAXMSGSIZE, 2 * self._frame_max)
        socket.set(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        socket.set(zmq.HEARTBEAT_IVL, 5000)
        socket.set(zmq.HEARTBEAT_TIMEOUT, 15_000)
        socket.set(zmq.HEARTBEAT_TTL, 15_000)
        socket.set(zmq.BACKLOG, 1024)
        ipv6 = ipaddress.ip_address(self._host).version == 6
        socket.set(zmq.IPV6, ipv6)
        address = f"[{self._host}]:{port}" if ipv6 else f"{self._host}:{port}"
        try:
            socket.bind(f"tcp://{address}")
        except zmq.ZMQError as error:
            socket.close(linger=0)
            raise AddressInUse(
                f"{address} cannot be bound: {zmq.strerror(error.errno or 0)}; stop what uses it, or change the node's "
                "address in its configuration",
                address=address,
            ) from None
        return socket
