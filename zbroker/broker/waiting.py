"""Answers of a coordinator that are decided and not given yet: until what they rest on is committed, and known to be.

Owns the order and the deadlines. An answer is given once all that was in the log when it was decided is committed; and
where none of that was appended after its request had come, once the in-sync replicas have confirmed, later than that,
that this node still leads: so no answer comes from a coordinator that was deposed before it was asked. One round of
confirmation serves everyone who waits when it begins.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

import msgspec

from zbroker.broker.ports import Conversation
from zbroker.errors import ZBrokerError
from zbroker.protocol.messages import Reply
from zbroker.replication.leader import Leader

ANSWER_MS = 10_000
"""How long an answer waits for the other replicas."""


class Asked:
    """A request of a group: whom to answer, and whether it is counted as in flight."""

    __slots__ = ("counted", "to")

    def __init__(self, to: Conversation) -> None:
        self.to = to
        self.counted = True


Found = Reply | ZBrokerError
Give = Callable[[Asked, Found], None]


class _Answer(msgspec.Struct):
    """One answer.

    Attributes:
        end: all below this offset must be committed first.
        appended: some of that was appended since the request came.
        number: of the confirmation that it waits for, None before one was asked for.
    """

    asked: Asked
    found: Found
    end: int
    appended: bool
    deadline: int
    number: int | None = None


class Waiting:
    """The answers of one coordinator, while it leads."""

    def __init__(self, leader: Leader, give: Give) -> None:
        self._leader = leader
        self._give = give
        self._uncommitted: deque[_Answer] = deque()
        self._unconfirmed: deque[_Answer] = deque()
        self._asked_for = 0
        """The number of the round that is on, 0 where none is."""

    def __len__(self) -> int:
        return len(self._uncommitted) + len(self._unconfirmed)

    def add(self, asked: Asked, found: Found, *, end: int, appended: bool, now: int) -> None:
        """An answer that rests on all below an offset."""
        self._uncommitted.append(_Answer(asked, found, end, appended, now + ANSWER_MS))

    def advance(self, now: int) -> None:
        """Gives every answer that may be given by now."""
        high_watermark = self._leader.high_watermark
        while self._uncommitted and self._uncommitted[0].end <= high_watermark:
            answer = self._uncommitted.popleft()
            if answer.appended:
                self._give(answer.asked, answer.found)
            else:
                self._unconfirmed.append(answer)
        while self._unconfirmed:
            if not self._asked_for:
                self._asked_for = self._leader.confirm(now)
                for answer in self._unconfirmed:
                    answer.number = self._asked_for
            if self._leader.confirmed < self._asked_for:
                return
            self._asked_for = 0
            while self._unconfirmed and self._unconfirmed[0].number is not None:
                answer = self._unconfirmed.popleft()
                self._give(answer.asked, answer.found)

    def ask_again(self, now: int) -> None:
        """The question whether this node leads, or its answer, may be lost."""
        if self._asked_for:
            self._leader.confirm(now)

    def late(self, now: int) -> Iterator[tuple[Asked, bool]]:
        """Takes out those who have waited for too long: each with whether its request may have taken effect."""
        for waiting in (self._uncommitted, self._unconfirmed):
            while waiting and waiting[0].deadline <= now:
                answer = waiting.popleft()
                yield answer.asked, answer.appended

    def uncommitted(self) -> Iterator[tuple[Asked, bool]]:
        """Takes out those who wait for commit."""
        while self._uncommitted:
            answer = self._uncommitted.popleft()
            yield answer.asked, answer.appended

    def everyone(self) -> Iterator[tuple[Asked, bool]]:
        """Takes out everyone."""
        yield from self.uncommitted()
        while self._unconfirmed:
            answer = self._unconfirmed.popleft()
            yield answer.asked, answer.appended
