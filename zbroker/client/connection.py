"""The client's thread and its sockets: a DEALER and, where something is subscribed, a SUB for each server.

Owns every socket of a client and the ZeroMQ context. One poller loop: it drains what has arrived, lets the core decide
(`step`), carries out the effects that the core left in its `Exchange`, and sleeps until the core wants to go on. Host
names are resolved by workers, never by libzmq, and sockets connect to numeric addresses; a name with several is tried
one after the other. Never decides what to send, and never retries.

A DEALER that is disconnected, refused or late is closed, and the next transmission opens another: nothing that was
queued for a server which went away is delivered to the one that comes back. One that cannot be opened, for want of file
descriptors or with an address that is none, is a lost connection, too. A SUB reconnects by itself, and is opened anew
when its beacons fail to come. Reading never stops, whatever the core does with what it reads.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
import struct
import sys
import threading
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any, Protocol

import zmq

from zbroker import __version__
from zbroker.client.exchange import Body, Exchange, Reopen, Subscription, Transmit
from zbroker.errors import ClientClosed, InternalError, ZBrokerError
from zbroker.protocol import frames, messages
from zbroker.units import Address

logger = logging.getLogger("zbroker.client")

LARGE = 64 * 1024
"""Bytes from which a frame is handed over rather than copied."""
DRAIN = 200
"""Most messages that one socket gets read in one turn."""
BEACON_PATIENCE = 3.0
"""Seconds of silence after which a SUB that subscribes to partitions is opened anew (a beacon comes every 0.5 s)."""
SEND_HWM = 1000
AWAKE = -math.inf

_EVENTS = (
    zmq.EVENT_DISCONNECTED | zmq.EVENT_CONNECT_RETRIED | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)  # fmt: skip
_EVENT_HEAD = struct.Struct("=hi")


class Machine(Protocol):
    """A core, as its thread sees it."""

    exchange: Exchange

    def step(self, now: float) -> float | None:
        """Decides what is due; answers when to be called again at the latest."""

    def on_push(self, _address: Address, push: messages.Push, body: Body, now: float, /) -> None:
        """A batch or a beacon was pushed."""

    def on_change(self, change: messages.ClusterChange, now: float) -> None:
        """A cluster change was pushed."""

    def after_step(self) -> None:
        """Hands results over to the application: callbacks run here."""

    def on_failure(self, error: ZBrokerError) -> None:
        """The thread ends: nothing that is under way will end otherwise."""


class Server:
    """The sockets to one server."""

    __slots__ = (
        "address", "addresses", "dealer", "heard_at", "monitor", "outbox", "resolving", "sub", "subjects", "turn",
    )  # fmt: skip

    def __init__(self, address: Address) -> None:
        self.address = address
        self.addresses: list[str] = []
        """Numeric endpoints' hosts, once resolved."""
        self.turn = 0
        self.resolving = False
        self.dealer: zmq.Socket[bytes] | None = None
        self.monitor: zmq.Socket[bytes] | None = None
        self.sub: zmq.Socket[bytes] | None = None
        self.outbox: deque[tuple[list[Any], int]] = deque()
        self.subjects: dict[bytes, None] = {}
        self.heard_at = 0.0


class Connection:
    """One client's thread. `start` is called by the first use, not by a constructor."""

    def __init__(self, machine: Machine, name: str, *, sub_rcvhwm: int = 1000) -> None:
        self.machine = machine
        self.name = name
        self.error: ZBrokerError | None = None
        """Why the thread ended, where it was not asked to."""
        self._sub_rcvhwm = sub_rcvhwm
        self._start_lock = threading.Lock()
        self._post_lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()
        self._commands: deque[Callable[[float], None]] = deque()
        self._ended = False
        """Whether the last command has been called."""
        self._sleep_until = AWAKE
        self._woken = False
        self._stopping = False
        self._linger = 0
        self._poke_in: socket.socket | None = None
        self._poke_out: socket.socket | None = None
        self._servers: dict[Address, Server] = {}
        self._readers: dict[Any, tuple[Server, str]] = {}
        self._resolver = _Resolver(name)
        self._sub_watch = 0.0

    # Any thread ---

    def start(self) -> None:
        """Starts the thread, once."""
        if self._thread is not None:
            return
        with self._start_lock:
            if self._thread is not None or self._stopping:
                return
            self._poke_in, self._poke_out = socket.socketpair()
            self._poke_in.setblocking(False)
            self._poke_out.setblocking(False)
            thread = threading.Thread(target=self._run, name=self.name, daemon=True)
            try:
                thread.start()
            except RuntimeError:  # there are too many, or the interpreter exits
                self._close_pokes()
                raise
            except BaseException:  # Ctrl-C, while it was waited for that the thread runs
                self._thread = thread
                raise
            self._thread = thread

    @property
    def started(self) -> bool:
        """Whether the thread was ever started."""
        return self._thread is not None

    @property
    def running(self) -> bool:
        """Whether the thread was started in this process and has not been told to end."""
        return self._thread is not None and not self._stopping and os.getpid() == self._pid

    def wake(self, by: float = 0.0) -> None:
        """Makes the thread look, unless it wakes by itself before the monotonic time `by`."""
        self._woken = True
        if self._sleep_until > by:
            self._sleep_until = AWAKE
            self._poke()

    @property
    def failure(self) -> ZBrokerError:
        """Why the thread has ended, or does not begin."""
        return self.error or ClientClosed("the client was closed")

    def post(self, command: Callable[[float], None]) -> bool:
        """Has the thread call `command(now)`; False where it has ended, so that nobody ever will."""
        with self._post_lock:
            if self._ended or (self._stopping and self._thread is None):
                return False
            self._commands.append(command)
        self.wake()
        return True

    def stop(self, linger: float = 0.0) -> None:
        """Ends the thread and waits for it; `linger` is how many seconds what was sent has to leave."""
        with self._start_lock:
            self._stopping = True
            self._linger = int(linger * 1000)
            thread = self._thread
        if thread is None or os.getpid() != self._pid:
            return
        self._woken = True
        self._poke()
        if thread is not threading.current_thread():
            while thread.is_alive():
                thread.join(0.1)

    def stop_soon(self) -> None:
        """Ends the thread without waiting."""
        self._stopping = True
        self._woken = True
        self._poke()

    def _poke(self) -> None:
        poke = self._poke_out
        if poke is not None:
            with contextlib.suppress(
                OSError
            ):  # full: it is being woken already; closed: it has ended
                poke.send(b"\0")

    # The thread ---

    def _run(self) -> None:
        context = zmq.Context()
        try:
            self._loop(context)
        except Exception as error:
            logger.exception("%s: the client's thread failed", self.name)
            self.error = InternalError(
                f"the client's thread failed ({type(error).__name__}: {error}); open another client"
            )
        finally:
            self._stopping = True
            self._run_last_commands()
            try:
                self.machine.on_failure(self.failure)
                self.machine.after_step()
            except Exception:
                logger.exception("%s: closing failed", self.name)
            for server in self._servers.values():
                self._close_dealer(server, self._linger)
                self._close_sub(server)
            context.term()
            self._close_pokes()

    def _run_last_commands(self) -> None:
        """Calls what was posted before the end, so that its caller is told of that; nothing is posted from here on."""
        with self._post_lock:
            self._ended = True
        while self._commands:
            try:
                self._commands.popleft()(monotonic())
            except Exception:
                logger.exception("%s: closing failed", self.name)

    def _close_pokes(self) -> None:
        for end in (self._poke_in, self._poke_out):
            if end is not None:
                end.close()

    def _loop(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self._context = context
        self._poller = poller = zmq.Poller()
        poke = self._poke_in
        assert poke is not None
        poller.register(poke, zmq.POLLIN)
        poke_fd = poke.fileno()
        machine, exchange, commands, readers = (
            self.machine, self.machine.exchange, self._commands, self._readers,
        )  # fmt: skip
        wanted: float | None = 0.0
        while not self._stopping:
            self._sleep_until = math.inf if wanted is None else wanted
            if self._woken:
                timeout: int | None = 0
            elif wanted is None:
                timeout = None
            else:
                timeout = max(0, math.ceil((wanted - monotonic()) * 1000))
            ready = poller.poll(timeout)
            self._sleep_until = AWAKE
            self._woken = False
            now = monotonic()
            for found, _ in ready:
                reader = readers.get(found)
                if reader is not None:
                    self._read(found, *reader, now)
                elif found == poke_fd:
                    self._drain_pokes(poke)
            while commands:
                commands.popleft()(now)
            exchange.tick(now)
            wanted = machine.step(now)
            if exchange.effects:
                self._carry_out(now)
            deadline = exchange.next_deadline()
            if deadline is not None and (wanted is None or deadline < wanted):
                wanted = deadline
            if self._sub_watch and (wanted is None or self._sub_watch < wanted):
                wanted = self._sub_watch
            if self._sub_watch and now >= self._sub_watch:
                self._watch_subs(now)
            machine.after_step()

    @staticmethod
    def _drain_pokes(poke: socket.socket) -> None:
        try:
            while len(poke.recv(4096)) == 4096:
                pass
        except OSError:
            pass

    # Reading ---

    def _read(self, sock: Any, server: Server, kind: str, now: float) -> None:
        if sock.closed:
            return
        if kind == "dealer":
            if server.outbox:
                self._flush_outbox(server, now)
            self._read_dealer(sock, server, now)
        elif kind == "sub":
            self._read_sub(sock, server, now)
        else:
            self._read_monitor(sock, server, now)

    def _read_dealer(
        self, sock: zmq.Socket[bytes], server: Server, now: float, most: int = DRAIN
    ) -> None:
        exchange, address = self.machine.exchange, server.address
        for _ in range(most):
            try:
                parts = sock.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            try:
                reply = frames.decode_reply(parts[0].bytes)
            except ZBrokerError as error:
                logger.warning("%s: %s sent what is not a reply: %s", self.name, address, error)
                continue
            body = _content(parts[1]) if len(parts) > 1 else None
            if reply.id == 0 and isinstance(reply, messages.ErrorReply):
                # To the hello. A node that is starting says so to every request too, which is then repeated.
                passing = frames.reply_error(reply).retriable
                level = logging.DEBUG if passing else logging.WARNING
                logger.log(level, "%s: %s refuses: %s", self.name, address, reply.message)
                continue
            exchange.on_reply(address, reply, body, now)
            if sock.closed:
                return

    def _read_sub(self, sock: zmq.Socket[bytes], server: Server, now: float) -> None:
        machine = self.machine
        server.heard_at = now
        for _ in range(DRAIN):
            try:
                parts = sock.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            if len(parts) < 2:
                continue
            try:
                head = parts[1].bytes
                if parts[0].bytes == frames.CLUSTER_SUBJECT:
                    machine.on_change(frames.decode_change(head), now)
                else:
                    body = _content(parts[2]) if len(parts) > 2 else None
                    machine.on_push(server.address, frames.decode_push(head), body, now)
            except ZBrokerError as error:
                logger.warning(
                    "%s: %s pushed what is not known here: %s", self.name, server.address, error
                )

    def _read_monitor(self, sock: zmq.Socket[bytes], server: Server, now: float) -> None:
        lost = None
        for _ in range(DRAIN):
            try:
                head, *_ = sock.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            event, value = _EVENT_HEAD.unpack_from(head)
            if event == zmq.EVENT_DISCONNECTED:
                lost = "the connection was lost"
            elif event == zmq.EVENT_CONNECT_RETRIED:
                lost = lost or "the connection was refused"
            elif event & _EVENTS:
                lost = f"the server does not speak ZeroMQ as expected (event {value})"
        if lost is not None:
            if server.dealer is not None:  # what the server answered before it went is an answer
                self._read_dealer(server.dealer, server, now, sys.maxsize)
            self._lose(server, lost, now)

    def _lose(self, server: Server, why: str, now: float) -> None:
        """The DEALER to a server is of no use any more."""
        server.turn += 1
        self._close_dealer(server, 0)
        server.outbox.clear()
        self.machine.exchange.on_lost(server.address, why, now)

    # Effects ---

    def _carry_out(self, now: float) -> None:
        exchange = self.machine.exchange
        while exchange.effects:
            for effect in exchange.take_effects():
                if isinstance(effect, Transmit):
                    self._transmit(effect, now)
                elif isinstance(effect, Reopen):
                    server = self._server(effect.address)
                    server.turn += 1
                    self._close_dealer(server, 0)
                    server.outbox.clear()
                else:
                    self._subscribe(effect, now)

    def _server(self, address: Address) -> Server:
        server = self._servers.get(address)
        if server is None:
            server = self._servers[address] = Server(address)
            host = address.host
            if _is_numeric(host):
                server.addresses = [host]
        return server

    def _transmit(self, effect: Transmit, now: float) -> None:
        server = self._server(effect.address)
        dealer = server.dealer
        if dealer is None:
            if not self._resolved(server):
                server.outbox.append((_parts(effect), effect.oneway))
                return
            dealer = self._open_dealer(server)
            if dealer is None:
                return
        if server.outbox:
            server.outbox.append((_parts(effect), effect.oneway))
            self._flush_outbox(server, now)
            return
        if self._send(dealer, _parts(effect)):
            self._sent(effect.oneway, now)
        else:
            server.outbox.append((_parts(effect), effect.oneway))
            self._poller.register(dealer, zmq.POLLIN | zmq.POLLOUT)

    @staticmethod
    def _send(dealer: zmq.Socket[bytes], parts: list[Any]) -> bool:
        try:
            if len(parts) == 1:
                dealer.send(parts[0], zmq.NOBLOCK)
            else:
                head, body = parts
                dealer.send(head, zmq.NOBLOCK | zmq.SNDMORE)
                dealer.send(body, zmq.NOBLOCK, copy=len(body) < LARGE)
        except zmq.Again:
            return False
        return True

    def _flush_outbox(self, server: Server, now: float) -> None:
        dealer = server.dealer
        if dealer is None:
            return
        while server.outbox:
            parts, oneway = server.outbox[0]
            if not self._send(dealer, parts):
                self._poller.register(dealer, zmq.POLLIN | zmq.POLLOUT)
                return
            server.outbox.popleft()
            self._sent(oneway, now)
        self._poller.register(dealer, zmq.POLLIN)

    def _sent(self, oneway: int, now: float) -> None:
        if oneway:
            self.machine.exchange.on_sent(oneway, now)
            self._woken = (
                True  # what comes after it may go: that is for the core to decide, in another turn
            )

    def _open_dealer(self, server: Server) -> zmq.Socket[bytes] | None:
        """Opens and connects a DEALER; None where that fails, of which the core is told in the next turn."""
        try:
            return self._connect_dealer(server)
        except zmq.ZMQError as error:
            self._close_dealer(server, 0)
            why = f"no connection can be opened ({error})"
            self.post(lambda now: self._lose(server, why, now))
            return None

    def _connect_dealer(self, server: Server) -> zmq.Socket[bytes]:
        server.dealer = dealer = self._context.socket(zmq.DEALER)
        dealer.linger = 0
        dealer.sndhwm = SEND_HWM
        dealer.rcvhwm = 0
        dealer.reconnect_ivl = 100
        dealer.reconnect_ivl_max = 1000
        dealer.connect_timeout = 5000
        dealer.handshake_ivl = 5000
        dealer.tcp_keepalive = 1
        dealer.ipv6 = True
        server.monitor = dealer.get_monitor_socket(_EVENTS)
        self._readers[dealer] = (server, "dealer")
        self._readers[server.monitor] = (server, "monitor")
        self._poller.register(dealer, zmq.POLLIN)
        self._poller.register(server.monitor, zmq.POLLIN)
        dealer.connect(self._endpoint(server, 0))
        hello = messages.Hello(client=f"zbroker-python {__version__}")
        dealer.send(frames.encode(hello), zmq.NOBLOCK)
        return dealer

    @staticmethod
    def _endpoint(server: Server, shift: int) -> str:
        host = server.addresses[server.turn % len(server.addresses)]
        name = f"[{host}]" if ":" in host else host
        return f"tcp://{name}:{server.address.port + shift}"

    def _close_dealer(self, server: Server, linger: int) -> None:
        dealer, monitor = server.dealer, server.monitor
        server.dealer = server.monitor = None
        if dealer is None:
            return
        self._forget(dealer)
        dealer.disable_monitor()
        if monitor is not None:
            self._forget(monitor)
            monitor.close(0)
        dealer.close(linger)

    def _forget(self, sock: zmq.Socket[bytes]) -> None:
        if self._readers.pop(sock, None) is not None:
            self._poller.unregister(sock)

    # Subscriptions ---

    def _subscribe(self, effect: Subscription, now: float) -> None:
        server = self._server(effect.address)
        if effect.action == "add":
            if effect.subject not in server.subjects:
                server.subjects[effect.subject] = None
                if server.sub is not None:
                    server.sub.subscribe(effect.subject)
            if server.sub is None and self._resolved(server):
                self._open_sub(server, now)
        elif effect.action == "drop":
            if server.subjects.pop(effect.subject, 0) is None and server.sub is not None:
                server.sub.unsubscribe(effect.subject)
            if not server.subjects:
                self._close_sub(server)
        else:
            self._close_sub(server)
            if server.subjects and self._resolved(server):
                self._open_sub(server, now)

    def _open_sub(self, server: Server, now: float) -> None:
        """Opens a SUB; where that fails there is none until the watch tries again."""
        if not self._sub_watch:
            self._sub_watch = now + BEACON_PATIENCE
        try:
            self._connect_sub(server)
        except zmq.ZMQError as error:
            self._close_sub(server)
            logger.debug("%s: no SUB to %s can be opened (%s)", self.name, server.address, error)
        server.heard_at = now

    def _connect_sub(self, server: Server) -> None:
        server.sub = sub = self._context.socket(zmq.SUB)
        sub.linger = 0
        sub.rcvhwm = self._sub_rcvhwm
        sub.reconnect_ivl = 100
        sub.reconnect_ivl_max = 1000
        sub.handshake_ivl = 5000
        sub.ipv6 = True
        for subject in server.subjects:
            sub.subscribe(subject)
        sub.connect(self._endpoint(server, 1))
        self._readers[sub] = (server, "sub")
        self._poller.register(sub, zmq.POLLIN)

    def _close_sub(self, server: Server) -> None:
        sub = server.sub
        server.sub = None
        if sub is not None:
            self._forget(sub)
            sub.close(0)

    def _watch_subs(self, now: float) -> None:
        """Opens the SUBs anew whose beacons have failed to come, and those that could not be opened."""
        self._sub_watch = 0.0
        for server in self._servers.values():
            if not (server.subjects and server.addresses):
                continue
            self._sub_watch = now + BEACON_PATIENCE / 2
            if server.sub is None or now - server.heard_at > BEACON_PATIENCE:
                self._close_sub(server)
                server.turn += 1
                self._open_sub(server, now)

    # Names ---

    def _resolved(self, server: Server) -> bool:
        """Whether the server's numeric address is known; else it is being looked up."""
        if _is_numeric(server.address.host):
            return True
        if server.addresses and server.turn < len(server.addresses):
            return True
        if not server.resolving:
            server.resolving = True
            self._resolver.ask(
                server.address.host,
                lambda found: self.post(lambda now: self._found(server, found, now)),
            )
        return False

    def _found(self, server: Server, found: list[str] | str, now: float) -> None:
        server.resolving = False
        if isinstance(found, str):
            server.outbox.clear()
            self.machine.exchange.on_lost(server.address, found, now)
            return
        server.addresses = found
        server.turn = 0
        if server.outbox:
            if server.dealer is None:
                self._open_dealer(server)
            self._flush_outbox(server, now)
        if server.subjects and server.sub is None:
            self._open_sub(server, now)


class _Resolver:
    """Looks names up, each in a thread of its own: a name that is slow to resolve holds up nobody else."""

    def __init__(self, name: str) -> None:
        self._name = f"{name}-names"

    def ask(self, host: str, answer: Callable[[list[str] | str], object]) -> None:
        """Looks a name up; `answer` gets numeric addresses, IPv4 first, or why there are none."""
        thread = threading.Thread(
            target=lambda: answer(self._look_up(host)), name=self._name, daemon=True
        )
        try:
            thread.start()
        except RuntimeError:  # there are too many, or the interpreter exits
            answer(self._look_up(host))

    @staticmethod
    def _look_up(host: str) -> list[str] | str:
        try:
            infos = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except OSError as error:
            return f"the name {host} cannot be resolved ({error.strerror or error})"
        except UnicodeError as error:
            return f"the name {host} cannot be resolved ({error})"
        infos.sort(key=lambda info: info[0] != socket.AF_INET)
        return list(dict.fromkeys(str(info[4][0]) for info in infos))


def _is_numeric(host: str) -> bool:
    return ":" in host or host.replace(".", "").isdigit()


def _content(frame: zmq.Frame) -> bytes | memoryview:
    return frame.buffer if len(frame) >= LARGE else frame.bytes


def _parts(effect: Transmit) -> list[Any]:
    return [effect.head] if effect.body is None else [effect.head, effect.body]
