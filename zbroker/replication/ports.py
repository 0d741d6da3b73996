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


class LinkBudget:
    """Bytes of catch-up that are on their way to one node, over all partitions: live batches wait for no more.

    >>> budget = LinkBudget(100)
    >>> budget.take(80), budget.take(80), budget.free
    (True, False, 20)
    >>> budget.give(80); budget.free
    100
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

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

    def give(self, size: int) -> None:
        """What arrived, or will never arrive."""
        self.used -= size
        assert self.used >= 0, self.used
