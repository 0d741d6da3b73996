"""Producers that wait for their batches to be as safe as they asked: committed (acks all), or written (acks leader).

Owns the order and the deadlines of one partition's waiting producers. Never decides what is safe: it is told offsets.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from zbroker.broker.ports import Conversation, Replier
from zbroker.errors import ZBrokerError
from zbroker.protocol.frames import error_reply
from zbroker.protocol.messages import ProduceReply


class _Waiter:
    """A producer that waits until all below `offset` is safe."""

    __slots__ = ("deadline", "offset", "reply", "to")

    def __init__(self, to: Conversation, reply: ProduceReply, offset: int, deadline: int) -> None:
        self.to, self.reply, self.offset, self.deadline = to, reply, offset, deadline


class Acknowledgements:
    """Who waits at one partition."""

    def __init__(self, reply: Replier) -> None:
        self._reply = reply
        self._for_commit: deque[_Waiter] = deque()
        self._for_write: deque[_Waiter] = deque()

    def __bool__(self) -> bool:
        return bool(self._for_commit or self._for_write)

    def add(
        self, to: Conversation, reply: ProduceReply, offset: int, deadline: int, *, commit: bool
    ) -> None:
        """Somebody waits until all below the offset is committed, or (not `commit`) written."""
        waiting = self._for_commit if commit else self._for_write
        waiting.append(_Waiter(to, reply, offset, deadline))

    def answer(self, *, written: int, flushed: int, committed: int, always: bool) -> None:
        """Answers everyone whose batch is as safe as asked.

        Args:
            written, flushed, committed: all below each is so.
            always: what is committed is flushed, on every in-sync replica.
        """
        waiting = self._for_write
        while waiting and waiting[0].offset <= written:
            self._done(waiting.popleft(), flushed)
        waiting = self._for_commit
        while waiting and waiting[0].offset <= committed:
            waiter = waiting.popleft()
            self._done(waiter, waiter.offset if always else flushed)

    def _done(self, waiter: _Waiter, flushed: int) -> None:
        if flushed >= waiter.offset:
            waiter.reply.durability = "flushed"
        self._reply(waiter.to, waiter.reply)

    def refuse_beyond(self, offset: int, error: ZBrokerError) -> None:
        """Nothing at the offset or later was kept."""
        self._refuse_where(lambda waiter: waiter.offset > offset, error)

    def refuse_late(self, now: int, error: ZBrokerError) -> None:
        """Those whose time is up are told."""
        self._refuse_where(lambda waiter: waiter.deadline <= now, error)

    def refuse_commits(self, error: ZBrokerError) -> None:
        """Nothing more is committed for now: whoever waits for that is told."""
        waiting, self._for_commit = self._for_commit, deque()
        for waiter in waiting:
            self._refuse(waiter, error)

    def refuse_all(self, error: ZBrokerError) -> None:
        """Everyone is told."""
        self._refuse_where(lambda _: True, error)

    def _refuse_where(self, applies: Callable[[_Waiter], bool], error: ZBrokerError) -> None:
        for waiting in (self._for_commit, self._for_write):
            refused = [waiter for waiter in waiting if applies(waiter)]
            for waiter in refused:
                waiting.remove(waiter)
                self._refuse(waiter, error)

    def _refuse(self, waiter: _Waiter, error: ZBrokerError) -> None:
        self._reply(waiter.to, error_reply(error, waiter.to.id))
