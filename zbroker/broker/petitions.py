"""Requests of this node to the controller, wherever that is: its own, and those that it passes on for clients.

Owns who waits for the controller's answer. A request is repeated to whoever is the controller until it is answered, for
messages may be lost and controllers change; every request is made so that the same again does no harm. An answer takes
effect once this node has applied the metadata that it goes by: so whoever hears it here sees what it says.

======== ======================================== ======== ========================================================
state    on                                       next     effect
======== ======================================== ======== ========================================================
asked    an answer that another try can better    asked    asked again after `AGAIN_MS`
asked    any other answer                         answered waits for the metadata
asked    another controller, or `AGAIN_MS` passed asked    asked again
asked    its time is up                           done     told that the outcome is unknown
answered the metadata are applied so far          done     told the result, or the refusal
answered they are not after `FORGET_MS`           asked    asked again: no controller can have meant that answer
======== ======================================== ======== ========================================================

On the other side, a request that another node's start repeats is decided once: it is answered again as it was, or once
its decision is committed. An answer never goes to another start than the one that asked, for each counts from one.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from zbroker.broker.control import Answer, ControllerDesk
from zbroker.broker.mesh import Mesh
from zbroker.cluster.quorum import MetadataPartition
from zbroker.errors import NotReady, ZBrokerError, from_wire
from zbroker.protocol.peers import ControllerRequest, Decided, Forward

AGAIN_MS = 200
FORGET_MS = 10_000
REMEMBERED = 256
"""Answers to one node that are known again when it repeats the request."""

OnDone = Callable[[Answer], None]


class _Petition(msgspec.Struct):
    """One request that waits."""

    number: int
    request: ControllerRequest
    done: OnDone
    deadline: int | None
    asked_at: int = -1_000_000
    asked: str | None = None
    answer: Answer | None = None
    answered_at: int = 0
    not_yet: str = ""


class Petitions:
    """All requests of one node to the controller. See the module for what becomes of each."""

    def __init__(
        self, node: str, metadata: MetadataPartition, desk: ControllerDesk, mesh: Mesh
    ) -> None:
        self._node = node
        self._metadata = metadata
        self._desk = desk
        self._mesh = mesh
        self._open: dict[int, _Petition] = {}
        self._decided: dict[tuple[str, int], dict[int, Decided | None]] = {}
        """What the starts of other nodes were answered, by name and incarnation; None while that is being decided."""
        self._last = 0
        self._now = self._wall = 0

    def ask(
        self, request: ControllerRequest, done: OnDone, now: int, *, timeout: int | None = None
    ) -> None:
        """Asks the controller; `done` hears of the answer once it holds here.

        Args:
            timeout: ms after which the outcome is unknown; None waits for as long as it takes.
        """
        self._now = now
        self._last += 1
        deadline = None if timeout is None else now + timeout
        petition = self._open[self._last] = _Petition(self._last, request, done, deadline)
        self._send(petition)

    def take(self, sender: str, incarnation: int, message: Forward, wall: int) -> None:
        """Another node's request: answered if this node is the controller."""
        decided = self._decided_for(sender, incarnation)
        number = message.number
        if number in decided:
            again = decided[number]
            if again is not None:
                self._mesh.send(sender, again)
            return

        def answer(found: Answer) -> None:
            reply = _decided(number, found)
            if isinstance(found.error, NotReady):
                decided.pop(number, None)  # another try may find it otherwise
            else:
                decided[number] = reply
            if self._is_start(sender, incarnation):
                self._mesh.send(sender, reply)

        decided[number] = None
        self._desk.take(sender, message.request, answer, wall)

    def _decided_for(self, sender: str, incarnation: int) -> dict[int, Decided | None]:
        """What one start of a node was answered; what earlier ones were is forgotten."""
        key = (sender, incarnation)
        if key not in self._decided:
            for other in [each for each in self._decided if each[0] == sender]:
                del self._decided[other]
            self._decided[key] = {}
        decided = self._decided[key]
        if len(decided) > REMEMBERED:
            done = [number for number, reply in decided.items() if reply is not None]
            for number in done[: len(decided) - REMEMBERED]:
                del decided[number]
        return decided

    def _is_start(self, node: str, incarnation: int) -> bool:
        peer = self._mesh.peers.get(node)
        return peer is not None and peer.incarnation == incarnation

    def on_decided(self, message: Decided) -> None:
        """The controller's answer."""
        error: ZBrokerError | None = None
        if message.code:
            error = from_wire(
                message.code, message.message, message.details,
                outcome_unknown=message.outcome_unknown,
            )  # fmt: skip
        self._answered(message.number, Answer(message.end, message.result, error))

    def on_tick(self, now: int, wall: int) -> None:
        """About every 100 ms."""
        self._now, self._wall = now, wall
        for petition in list(self._open.values()):
            if petition.deadline is not None and now >= petition.deadline:
                del self._open[petition.number]
                why = petition.not_yet or "the controller did not answer in time"
                petition.done(Answer(0, error=NotReady(why, outcome_unknown=True)))
            elif petition.answer is None and now - petition.asked_at >= AGAIN_MS:
                self._send(petition)
            elif petition.answer is not None and now - petition.answered_at >= FORGET_MS:
                petition.answer = None
                self._send(petition)

    def on_metadata(self, now: int) -> None:
        """The metadata grew, or another node leads them."""
        self._now = now
        applied, leader = self._metadata.applied, self._metadata.leader
        for petition in list(self._open.values()):
            if petition.answer is None:
                if leader is not None and petition.asked != leader:
                    self._send(petition)
            elif petition.answer.end <= applied and petition.number in self._open:
                del self._open[petition.number]
                petition.done(petition.answer)

    def _send(self, petition: _Petition) -> None:
        leader = self._metadata.leader
        petition.asked, petition.asked_at = leader, self._now
        number = petition.number
        if leader == self._node:
            self._desk.take(
                self._node,
                petition.request,
                lambda answer: self._answered(number, answer),
                self._wall,
            )
        elif leader is not None:
            self._mesh.send(leader, Forward(number=number, request=petition.request))

    def _answered(self, number: int, answer: Answer) -> None:
        petition = self._open.get(number)
        if petition is None or petition.answer is not None:
            return
        if isinstance(answer.error, NotReady):
            petition.asked = None
            petition.not_yet = str(answer.error)
            return  # asked again when its time comes
        petition.answer, petition.answered_at = answer, self._now
        if answer.end <= self._metadata.applied:
            del self._open[number]
            petition.done(answer)


def _decided(number: int, found: Answer) -> Decided:
    """An answer as another node is told it."""
    decided = Decided(number=number, end=found.end, result=found.result)
    error = found.error
    if error is not None:
        decided.code, decided.message = error.code, str(error)
        decided.details, decided.outcome_unknown = error.details, error.outcome_unknown
    return decided
