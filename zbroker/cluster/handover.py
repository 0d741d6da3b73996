"""A leader of the metadata that is about to go: whom it asks to stand for election in its place, and how often.

Owns that choice: the voter that has most of the leader's log, asked once it has all of it. Never elects anybody:
whoever is asked stands as any candidate does, only without waiting (Ongaro's dissertation, section 3.10).
"""

from __future__ import annotations

from collections.abc import Callable

from zbroker.cluster.electorate import Electorate
from zbroker.replication.leader import Leader

RESEND_MS = 50


class Handover:
    """One node's, while it leads.

    Attributes:
        target: who is asked to lead in this node's place, None while it wants to go on.
    """

    def __init__(
        self, electorate: Electorate, ask: Callable[[str, int], None], timeout: int
    ) -> None:
        """
        Args:
            ask: tells a voter to stand now, in the epoch after the one that is given.
            timeout: ms after which a leader whose place nobody has taken goes on.
        """
        self.target: str | None = None
        self._electorate = electorate
        self._ask = ask
        self._timeout = timeout
        self._until = self._asked_at = 0

    def begin(self, leader: Leader, now: int) -> bool:
        """Looks for somebody to ask; False where there is nobody."""
        self.target = self._best(leader)
        self._until = now + self._timeout
        self._asked_at = now - RESEND_MS
        return self.target is not None

    def end(self) -> None:
        """Somebody else leads, or nobody will."""
        self.target = None

    def is_over(self, now: int) -> bool:
        """Whether nothing has come of it."""
        return self.target is not None and now >= self._until

    def go_on(self, leader: Leader, now: int) -> None:
        """Asks, again and again, once whoever is asked has the whole log."""
        target = self.target
        follower = leader.followers.get(target) if target is not None else None
        if (
            target is not None
            and follower is not None
            and follower.flushed >= leader.log.end_offset
            and now - self._asked_at >= RESEND_MS
        ):
            self._asked_at = now
            self._ask(target, leader.epoch)

    def ask_once(self, leader: Leader) -> None:
        """This node leads no more, whatever comes of it."""
        target = self._best(leader)
        if target is not None:
            self._ask(target, leader.epoch)

    def _best(self, leader: Leader) -> str | None:
        others = [
            (follower.flushed, node)
            for node, follower in leader.followers.items()
            if self._electorate.is_voter(node) and follower.begun >= leader.epoch
        ]
        return max(others)[1] if others else None
