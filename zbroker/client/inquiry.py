"""One question that any server may answer: asked of one after the other until one has.

Owns whom to ask next, and for how long a silent server alone is waited for. Pure. Never goes on once all have failed:
whoever wanted to know decides whether, and when, there is another round.

================================== ===============================================
what a server does                 what follows
================================== ===============================================
it answers                         the end; whoever else was asked is abandoned
it refuses, is lost or is too late the next one is asked at once
it keeps silent for a while        the next one is asked as well
it fails while others keep silent  it is asked again, now and then
it was the last, and has failed    the end, with the last error
================================== ===============================================
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from zbroker.client.exchange import Body, Call, Exchange, Outcome
from zbroker.errors import ServersUnreachable, ZBrokerError
from zbroker.protocol.messages import Message
from zbroker.units import Address

PATIENCE = 0.1
"""Seconds of silence of the first server after which a second one is asked too."""
MORE_PATIENCE = 0.05
"""Seconds after which each further one is."""


class Inquiry:
    """A question on its way. `done(address, outcome, now)` is called once, by a call's end and never by `start`.

    Args:
        candidates: whom to ask, the best first.
        timeout: seconds that one server has; then its socket is opened anew.
        patience: seconds of silence after which the second server is asked as well.
        accepts: whether an outcome ends the question; else it goes to the next server.
        failed: told of every server that did not answer; may name the one to ask next.
    """

    def __init__(
        self,
        exchange: Exchange,
        message: Message,
        candidates: Iterable[Address],
        *,
        timeout: float,
        patience: float = PATIENCE,
        accepts: Callable[[Outcome], bool],
        failed: Callable[[Address, Outcome], Address | None] = lambda _address, _outcome: None,
        done: Callable[[Address, Outcome, float], None],
    ) -> None:
        self._exchange = exchange
        self._message = message
        self._left = deque(dict.fromkeys(candidates))
        self._timeout = timeout
        self._patience = patience
        self._accepts = accepts
        self._failed = failed
        self._done = done
        self._calls: dict[Address, Call] = {}
        self._again: deque[Address] = deque()
        """Those that have failed; they may be back before the silent ones answer."""
        self._ask_at = 0.0
        self._ended = False

    def start(self, now: float) -> None:
        """Asks the first server."""
        self._ask(self._left.popleft(), now, self._patience)

    def step(self, now: float) -> float | None:
        """Asks another one when those asked have been silent for too long; answers when to look again."""
        if self._ended or not (self._left or self._again):
            return None
        if now >= self._ask_at:
            waiting = self._left or self._again
            self._ask(waiting.popleft(), now, min(self._patience, MORE_PATIENCE))
        return self._ask_at if self._left or self._again else None

    def prefer(self, address: Address, now: float) -> None:
        """This server is likely to know: asks it now, unless it is being asked."""
        if not self._ended and address not in self._calls:
            for waiting in (self._left, self._again):
                if address in waiting:
                    waiting.remove(address)
            self._ask(address, now, min(self._patience, MORE_PATIENCE))

    def abandon(self) -> None:
        """Nobody wants to know any more."""
        self._ended = True
        calls, self._calls = self._calls, {}
        for call in calls.values():
            self._exchange.abandon(call)

    def _ask(self, address: Address, now: float, patience: float) -> None:
        self._ask_at = now + patience
        self._calls[address] = self._exchange.request(
            address, self._message, self._answered, now=now, timeout=self._timeout
        )

    def _answered(self, call: Call, outcome: Outcome, _body: Body, now: float) -> None:
        if self._ended or self._calls.get(call.address) is not call:
            return
        del self._calls[call.address]
        if self._accepts(outcome):
            for silent in self._calls:
                self._failed(silent, ServersUnreachable(f"{silent}: slow to answer"))
            self.abandon()
        else:
            self._again.append(call.address)
            following = self._failed(call.address, outcome)
            if following is not None and following in self._left:
                self._left.remove(following)
                self._left.appendleft(following)
            if self._left:
                self._ask(self._left.popleft(), now, min(self._patience, MORE_PATIENCE))
                return
            if self._calls:
                self._ask_at = now + PATIENCE
                return
            self._ended = True
        self._done(call.address, outcome, now)


def reason(outcome: Outcome) -> str:
    """Why an outcome is no answer, for a sentence."""
    if isinstance(outcome, ZBrokerError):
        return str(outcome)
    return f"it answered with {type(outcome).__name__}"
