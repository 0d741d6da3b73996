"""Requests under way and what is to be done about them: correlation numbers, deadlines, lost connections.

Owns which request waits for which reply. Pure: it is told the time, and what it wants of the sockets it leaves in
`effects`, which the connection's thread carries out. Never retries: whoever asked is told how it ended.

A call ends exactly once, by `done(call, outcome, body, now)`, where the outcome is the reply or an error:

============================= ==========================================================
the server answered           the reply, or the error that it stands for
the connection was lost       `ServersUnreachable`, outcome unknown
no answer before the deadline `RequestTimedOut`; the socket is reopened, which loses the rest
abandoned                     never told
============================= ==========================================================
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Literal, NamedTuple

from zbroker.errors import RequestTimedOut, ServersUnreachable, ZBrokerError
from zbroker.protocol.frames import encode, reply_error
from zbroker.protocol.messages import ErrorReply, HelloReply, Message, Reply
from zbroker.units import Address

Body = bytes | bytearray | memoryview | None
Outcome = Reply | ZBrokerError

IN_FLIGHT_UNKNOWN = 256
"""How many requests a server is trusted with before its hello said how many it takes."""


class Call:
    """One request under way."""

    __slots__ = ("address", "body", "deadline", "done", "id", "message", "oneway")

    def __init__(
        self,
        number: int,
        address: Address,
        message: Message,
        body: Body,
        deadline: float,
        done: Callable[[Call, Outcome, Body, float], None],
        oneway: bool,
    ) -> None:
        self.id = number
        self.address = address
        self.message = message
        self.body = body
        self.deadline = deadline
        self.done = done
        self.oneway = oneway


class Transmit(NamedTuple):
    """Send these frames to a server; `oneway` calls are reported by `Exchange.on_sent`."""

    address: Address
    head: bytes
    body: Body
    oneway: int


class Reopen(NamedTuple):
    """Close the socket to a server; the next transmission opens another."""

    address: Address


class Subscription(NamedTuple):
    """Subscribe to a subject at a server's publisher, end that, or open the publisher's socket anew."""

    address: Address
    subject: bytes
    action: Literal["add", "drop", "reopen"]


Effect = Transmit | Reopen | Subscription


class Exchange:
    """Every request of one client, over all its servers."""

    def __init__(self) -> None:
        self.effects: list[Effect] = []
        self.calls: dict[int, Call] = {}
        self.in_flight: dict[Address, int] = {}
        self.limits: dict[Address, HelloReply] = {}
        self.when_lost: Callable[[Address, str, float], None] = lambda _address, _reason, _now: None
        """Told of a lost connection, once all that waited for it has been."""
        self._deadlines: list[tuple[float, int]] = []
        self._last = 0

    def request(
        self,
        address: Address,
        message: Message,
        done: Callable[[Call, Outcome, Body, float], None],
        *,
        now: float,
        timeout: float,
        body: Body = None,
        oneway: bool = False,
    ) -> Call:
        """Sends a request; `timeout` in seconds. A `oneway` one ends when the socket has taken it."""
        self._last += 1
        number = self._last
        message.id = number
        call = Call(number, address, message, body, now + timeout, done, oneway)
        self.calls[number] = call
        self.in_flight[address] = self.in_flight.get(address, 0) + 1
        heappush(self._deadlines, (call.deadline, number))
        self.effects.append(Transmit(address, encode(message), body, number if oneway else 0))
        return call

    def room(self, address: Address) -> int:
        """How many more requests the server takes now."""
        hello = self.limits.get(address)
        limit = hello.in_flight_max if hello is not None and hello.in_flight_max else 0
        return (limit or IN_FLIGHT_UNKNOWN) - self.in_flight.get(address, 0)

    def abandon(self, call: Call) -> None:
        """Forgets a call: a reply that still comes is dropped."""
        self._settle(call.id)

    def on_reply(self, address: Address, reply: Reply, body: Body, now: float) -> None:
        """A reply came; one that nobody waits for any more is dropped."""
        if isinstance(reply, HelloReply) and reply.id == 0:
            self.limits[address] = reply
            return
        call = self.calls.get(reply.id)
        if call is None or call.address != address:
            return
        self._settle(call.id)
        if isinstance(reply, ErrorReply):
            call.done(call, reply_error(reply), None, now)
        else:
            call.done(call, reply, body, now)

    def on_sent(self, number: int, now: float) -> None:
        """The socket has taken a `oneway` request."""
        call = self._settle(number)
        if call is not None:
            call.done(call, HelloReply(), None, now)

    def on_lost(self, address: Address, reason: str, now: float) -> None:
        """The connection to a server is gone, and with it every answer that was to come."""
        self.limits.pop(address, None)
        self._fail_all(
            address,
            lambda: ServersUnreachable(f"{address}: {reason}", outcome_unknown=True),
            now,
        )
        self.when_lost(address, reason, now)

    def tick(self, now: float) -> None:
        """Ends what is overdue, and reopens the sockets on which it was."""
        overdue: dict[Address, None] = {}
        while self._deadlines and self._deadlines[0][0] <= now:
            _, number = heappop(self._deadlines)
            call = self.calls.get(number)
            if call is not None:
                overdue[call.address] = None
        for address in overdue:
            self.effects.append(Reopen(address))
            self._fail_all(
                address,
                lambda address=address: RequestTimedOut(  # type: ignore[misc]
                    f"{address} did not answer in time", outcome_unknown=True
                ),
                now,
            )

    def next_deadline(self) -> float | None:
        """When `tick` has something to do."""
        while self._deadlines and self._deadlines[0][1] not in self.calls:
            heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def take_effects(self) -> list[Effect]:
        """What the sockets are to do, in order."""
        effects, self.effects = self.effects, []
        return effects

    def _fail_all(self, address: Address, error: Callable[[], ZBrokerError], now: float) -> None:
        for call in [call for call in self.calls.values() if call.address == address]:
            if self._settle(call.id) is not None:
                call.done(call, error(), None, now)

    def _settle(self, number: int) -> Call | None:
        call = self.calls.pop(number, None)
        if call is not None:
            left = self.in_flight[call.address] - 1
            if left:
                self.in_flight[call.address] = left
            else:
                del self.in_flight[call.address]
        return call


class Backoff:
    """Pauses between attempts: from `first` to `most` seconds, each shortened at random by up to half.

    With a `growth` of 1.25 a pause is about a quarter of what has passed since the first attempt, so that waiting adds
    little to an outage of any length; 2 is for servers that have too much to do.
    """

    __slots__ = ("_attempts", "_first", "_growth", "_most", "_random")

    def __init__(
        self,
        random: Callable[[], float],
        first: float = 0.005,
        most: float = 1.0,
        growth: float = 1.25,
    ) -> None:
        self._random = random
        self._first = first
        self._most = most
        self._growth = growth
        self._attempts = 0

    def next(self) -> float:
        """Seconds to wait before the next attempt."""
        pause: float = min(self._most, self._first * self._growth ** min(self._attempts, 64))
        self._attempts += 1
        return pause * (1.0 - 0.5 * self._random())

    def reset(self) -> None:
        """An attempt succeeded."""
        self._attempts = 0


class Retries:
    """The pauses after what went wrong with one partition, or one task."""

    __slots__ = ("_quick", "_slow")

    def __init__(self, random: Callable[[], float]) -> None:
        self._quick = Backoff(random)
        self._slow = Backoff(random, first=0.05, growth=2.0)

    def after(self, error: ZBrokerError) -> float:
        """Seconds to wait before the next attempt: few where a leader is changing, more where a node is burdened."""
        return (self._quick if moving(error) else self._slow).next()

    def reset(self) -> None:
        """An attempt succeeded, or there is another leader to try."""
        self._quick.reset()
        self._slow.reset()


def moving(error: ZBrokerError) -> bool:
    """Whether an error may mean that a partition is getting another leader, or that its leader is about to begin."""
    return error.hint == "refresh" or error.code in MOVING


MOVING = frozenset(("unreachable", "timed_out", "not_ready", "not_enough_replicas"))
"""Errors without the hint `refresh` after which there may all the same be another leader."""
