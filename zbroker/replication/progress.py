"""What a leader knows of one follower: where their logs agree, what is on its way, when it was last heard.

Owns no decision but one: when a follower counts as caught up. `leader` has the transitions.
"""

from __future__ import annotations

from collections import deque
from typing import Literal

import msgspec

State = Literal["probing", "streaming", "waiting"]


class Progress(msgspec.Struct):
    """One follower, in the session that is on.

    Attributes:
        incarnation: which start of the follower the session is with.
        session: the session's number; every probe and every answer of an older one is stale.
        state: see `leader`.
        next: where the next append begins; a probe's base while probing.
        written, flushed: acknowledged in this session: all below equals the leader's log.
        begun: newest epoch that is known to have begun on its disk.
        sent: bytes of batches sent in this session. `limit`: how many may be, in all. `taken`: how many arrived.
        reading: a catch-up read is under way.
        catching_up: reads for this follower that use the link's budget: where each ends, -1 while it is not read.
        told: the high watermark that it acknowledged to know.
        stamp: the newest stamp that it echoed.
        sent_at, heard_at: when something was last sent, and last heard; ms, monotonic.
        asked_at: when the first thing was sent since it was last heard: heartbeats do not hide that none is answered.
        answered: it was heard at all, in this start.
        retry_at: when a waiting follower is tried again. `gap_at`: when it last missed something.
        full: its disk is full. `rebuilding`: it has to discard what counts as committed, once it is out of the ISR.
        lacks: its log ends before the leader's begins: it needs what only a snapshot has.
        caught_up_at: when it last had all that the leader had.
    """

    incarnation: int
    session: int = 0
    state: State = "probing"
    next: int = 0
    written: int = 0
    flushed: int = 0
    begun: int = -1
    sent: int = 0
    limit: int = 0
    taken: int = 0
    reading: bool = False
    catching_up: deque[int] = msgspec.field(default_factory=deque)
    told: int = -1
    stamp: int = 0
    sent_at: int = 0
    asked_at: int = 0
    heard_at: int = 0
    answered: bool = False
    retry_at: int = 0
    gap_at: int = -1000
    full: bool = False
    rebuilding: bool = False
    lacks: bool = False
    caught_up_at: int = 0
    end_when_heard: int = -1

    def durable(self, *, flushed: bool) -> int:
        """The offset that counts."""
        return self.flushed if flushed else self.written

    def heard(self, now: int, durable: int, end: int) -> None:
        """An answer came: the follower is caught up as of the time at which the leader's log ended where it is now.

        Args:
            durable: what the follower has.
            end: the leader's log end offset.
        """
        if durable >= end:
            self.caught_up_at = now
        elif 0 <= self.end_when_heard <= durable:
            self.caught_up_at = max(self.caught_up_at, self.heard_at)
        self.heard_at = now
        self.end_when_heard = end
