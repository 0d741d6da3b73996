"""Evidence of death: plain TCP connects to a peer's control port, when they are made and what they say.

A connect that is refused shows that the peer's process is gone while its machine lives. One that is accepted shows
nothing more than that the port is listened on: a frozen process accepts as well. Silence, and what the network says
on its own behalf, is no evidence at all.

Owns the connects (`Probe`) and their timing (`Watch`). Never decides what follows from a death.
"""

from __future__ import annotations

import errno
import selectors
import socket
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from zbroker.units import Address

PAUSE_MIN_MS = 2
"""A process that dies may close its connections a moment before its port."""
PAUSE_MS = 25
PAUSE_SLOW_MS = 250
QUICK_FOR_MS = 1000
TIMEOUT_MS = 250
"""How long a connect may take: on a LAN it takes no more than a few."""
ACCEPTED_MIN = 5
"""Acceptances in a row, each 25 ms after the other, that show that a port is back whose link does not come."""
REPEAT_MS = 100
"""How often `gone` is repeated at most."""

Event = Literal["gone", "up"]
Outcome = Literal["accepted", "refused", "nothing"]


class Watch:
    """What one peer's port is known to do, and when it is asked next. Pure.

    ======= =================== ======= =====================================================================
    a peer  on                  next    effect
    ======= =================== ======= =====================================================================
    new     linked              linked  `up`
    new     lost                lost    a probe at once
    linked  lost                lost    a probe at once, the next ones after 2, 4, 8, 16 and then every 25 ms;
                                        after a second every 250 ms
    lost    refused             lost    `gone`, at most every 100 ms
    lost    accepted            lost    unless `up` was told last: the fifth in a row is `up`, the others are
                                        followed by a probe after 25 ms. Where it was, as after other answers,
                                        but after the first second no more until the link fails again
    lost    nothing             lost
    lost    linked              linked  `up`, unless that was told last; probes end
    ======= =================== ======= =====================================================================

    *linked*: the control lane has shaken hands. *lost*: it was disconnected, or a connect of its failed.

    `up` waits a while for the link, so that what is sent at `up` arrives: nothing is queued for a lane that is not
    connected.

    Attributes:
        linked: the control lane is connected.
        told: the last event.
        due: when `begin` or `expire` is wanted, None while nothing is; ms, monotonic.
        asking: a probe is under way.
    """

    def __init__(self) -> None:
        self.linked = False
        self.told: Event | None = None
        self.due: int | None = None
        self.asking = False
        self._told_at = 0
        self._lost_at: int | None = None
        self._asked_at = 0
        self._pause = PAUSE_MIN_MS
        self._accepted = 0

    def on_linked(self, now: int) -> Event | None:
        """The control lane has shaken hands. A probe under way is of no interest any more."""
        self.linked, self.asking, self.due = True, False, None
        return self._tell("up", now) if self.told != "up" else None

    def on_lost(self, now: int) -> None:
        """The control lane was disconnected, or could not be connected."""
        if self.linked or self._lost_at is None:
            self.linked = False
            self._lost_at = now
            self._pause = PAUSE_MIN_MS
            self._accepted = 0
            self.due = now
        elif self.due is None:
            self.due = max(now, self._asked_at + PAUSE_SLOW_MS)

    def begin(self, now: int) -> None:
        """A probe begins."""
        assert not self.linked
        assert not self.asking
        self.asking = True
        self._asked_at = now
        self.due = now + TIMEOUT_MS

    def on_outcome(self, outcome: Outcome, now: int) -> Event | None:
        """The probe is over."""
        assert self.asking
        assert self._lost_at is not None
        self.asking = False
        self._accepted = self._accepted + 1 if outcome == "accepted" else 0
        event: Event | None = None
        if outcome == "refused" and (self.told != "gone" or now - self._told_at >= REPEAT_MS):
            event = self._tell("gone", now)
        elif self._accepted >= ACCEPTED_MIN and self.told != "up":
            event = self._tell("up", now)
        if outcome == "accepted" and self.told != "up":
            self.due = now + PAUSE_MS
        elif now - self._lost_at < QUICK_FOR_MS:
            self.due = max(now, self._asked_at + self._pause)
            self._pause = min(2 * self._pause, PAUSE_MS)
        elif outcome != "accepted":
            self.due = max(now, self._asked_at + PAUSE_SLOW_MS)
        else:
            # A process that accepts and does not shake hands is frozen: its backlog is not ours to fill.
            self.due = None
        return event

    def is_back(self) -> bool:
        """Whether the port has just accepted for the first time after it did not: the link can be had now."""
        return self._accepted == 1 and self.told != "up"

    def _tell(self, event: Event, now: int) -> Event:
        self.told, self._told_at = event, now
        return event


class Answer(NamedTuple):
    """What a probe found: `host` is the address that accepted."""

    outcome: Outcome
    host: str | None = None


class Probe:
    """Connects to a port at each of a peer's addresses at once, and closes what is accepted without a word.

    The first address that accepts is the answer; so is a refusal by `home`, the address that the peer was last known
    at. Other refusals count when all addresses have refused: a name's other addresses may never have been listened on.

    Attributes:
        answer: what was found, None while the probe is under way.
    """

    def __init__(
        self,
        selector: selectors.BaseSelector,
        addresses: Sequence[Address],
        *,
        home: str | None,
        on_ready: Callable[[socket.socket, int], None],
    ) -> None:
        """Begins; `answer` may be there at once. `on_ready` is what the selector's keys carry."""
        self.answer: Answer | None = None
        self._selector = selector
        self._home = home
        self._on_ready = on_ready
        self._connecting: dict[socket.socket, str] = {}
        self._all_refused = bool(addresses)
        for address in addresses:
            if self.answer is None:
                self._connect(address)
        self._conclude()

    def on_ready(self, connection: socket.socket) -> None:
        """One of the connects is over."""
        # The selector may name one that was given up a moment ago.
        if connection in self._connecting:
            code = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            self._take(self._forget(connection), code)
            self._conclude()

    def close(self) -> None:
        """Gives up what is under way."""
        for connection in list(self._connecting):
            self._forget(connection)

    def _connect(self, address: Address) -> None:
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        try:
            connection = socket.socket(family, socket.SOCK_STREAM)
        except OSError:
            # No such family on this machine, or no descriptor left: nothing about the peer.
            self._take(address.host, errno.EIO)
            return
        connection.setblocking(False)
        try:
            code = connection.connect_ex(address)
        except (OSError, OverflowError, TypeError, ValueError):
            # A link-local address of an interface that is not there, or no address at all.
            code = errno.EIO
        if code == errno.EINPROGRESS:
            self._connecting[connection] = address.host
            self._selector.register(connection, selectors.EVENT_WRITE, self._on_ready)
        else:
            connection.close()
            self._take(address.host, code)

    def _take(self, host: str, code: int) -> None:
        refused = code == errno.ECONNREFUSED
        self._all_refused = self._all_refused and refused
        if code == 0:
            self.answer = Answer("accepted", host)
        elif refused and host == self._home:
            self.answer = Answer("refused")

    def _conclude(self) -> None:
        if self.answer is None and not self._connecting:
            self.answer = Answer("refused" if self._all_refused else "nothing")
        if self.answer is not None:
            self.close()

    def _forget(self, connection: socket.socket) -> str:
        self._selector.unregister(connection)
        connection.close()
        return self._connecting.pop(connection)
