"""What replication needs of its surroundings. Owns no behaviour; a broker implements these, and tests do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from zbroker.protocol.batch import Buffer
from zbroker.protocol.peers import Append, Appended


class SendAppend(Protocol):
    """Sends to a follower; may be lost without a word, and may arrive late or after later ones were lost."""

    def __call__(self, node: str, message: Append, batches: Sequence[Buffer]) -> None: ...


class SendAppended(Protocol):
    """Answers the leader; as unreliable."""

    def __call__(self, message: Appended) -> None: ...


class Waiter(Protocol):
    """Who waits for room in a budget: the leader of a partition."""

    def go_on(self, node: str) -> None:
        """There may be room now for catch-up on its way to a node."""


class LinkBudget:
    """Bytes of catch-up that are on their way to one node, over all partitions: live batches wait for no more.

    Who is refused goes on, in turn, when somebody calls `admit`; nobody is called from within `give`.

    >>> budget = LinkBudget(100)
    >>> budget.take(80), budget.take(80), budget.free
    (True, False, 20)
    >>> budget.give(80); budget.free
    100
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._waiting: dict[tuple[Waiter, str], int] = {}

    @property
    def free(self) -> int:
        """How much more may be on its way."""
        return self.limit - self.used

    def take(self, size: int) -> bool:
        """Whether `size` more may be sent; a budget of which nothing is used lets any size pass."""
        if self.used and self.used + size > self.limit:
            return False
        self.used += size
        return True

    def take_or_wait(self, size: int, waiter: Waiter, node: str, *, more: bool) -> bool:
        """As `take`; who is refused is told by `admit`.

        Args:
            more: it has something on its way already, and so lets others go first.
        """
        if not (more and self._waiting) and self.take(size):
            return True
        self._waiting[waiter, node] = size
        return False

    def give(self, size: int) -> None:
        """What arrived, or will never arrive."""
        self.used -= size
        assert self.used >= 0, self.used

    def admit(self) -> None:
        """Lets those who wait go on while there is room, each once."""
        for waiter, node in list(self._waiting):
            if self.used and self.used + self._waiting[waiter, node] > self.limit:
                return
            del self._waiting[waiter, node]
            waiter.go_on(node)
