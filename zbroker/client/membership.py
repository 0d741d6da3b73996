"""A member of a group: how it joins, stays, learns what it is to read, gives back, and leaves.

Owns the member's id and epoch, and what it holds. Pure: it takes answers with the time and leaves requests in the
`Exchange`. Never reads a partition and never commits: who it belongs to (`grouping`) is told what changes, and says
what has been released.

======== ==================================================== ======================================================
state    means                                                goes on to
======== ==================================================== ======================================================
away     not in the group: not begun, left, or out            joining, by `join`, under a new id
joining  a heartbeat with epoch 0 is to be answered           member, when it is; leaving, by `leave`
member   each answered heartbeat is followed by the next,     away, when the coordinator says that it is out
         which the coordinator holds while nothing is new     leaving, by `leave`
leaving  a heartbeat with epoch -1 or -2 is to be answered    away, when it is, or when its time is up
======== ==================================================== ======================================================

A partition, as the coordinator says it and as the member holds it:

========== =========================== ==============================================================================
held       in the answer               what follows
========== =========================== ==============================================================================
no         yes                         it is held from now on: gained. Not from an answer to what was sent before the
                                       partition was released: that one tells of the time before
yes        no                          it is lost: to be released, and held until it is
releasing  yes or no                   nothing: it is released all the same, and may be gained again after that
released   -                           the next heartbeat, sent at once, no longer names it among what is owned
========== =========================== ==============================================================================

The session is counted from when the last answered heartbeat was *sent*. Once it is over nothing may be handed out
(`fence_at`); whether the member is out is the coordinator's to say, who may have been away itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import inf
from typing import Literal

import msgspec

from zbroker.client.coordinator import Coordinator
from zbroker.client.exchange import Body, Call, Exchange, Outcome
from zbroker.client.records import TopicPartition
from zbroker.errors import MemberFenced, StaleMemberEpoch, UnknownGroup, ZBrokerError
from zbroker.protocol import messages

Assignor = Literal["sticky", "range"]

WAIT_SHARE = 0.25
"""How long the coordinator may hold a heartbeat, as a share of the session."""
ANSWER_SHARE = 0.25
"""How long the answer may take beyond that, as a share of the session; and at least:"""
ANSWER_LEAST = 0.5
EARLY_GAP = 0.05
"""Least seconds between two heartbeats that say nothing new; doubled each time that the coordinator does not hold."""
RELEASE_LEAST, RELEASE_MOST = 0.5, 86_400.0
"""Seconds for a release that a coordinator takes."""
STALE_PATIENCE = 3
"""Heartbeats in a row whose epoch is refused as stale, after which the member is taken to be out."""


class GroupSettings(msgspec.Struct, frozen=True):
    """What a member tells its coordinator; times are seconds."""

    group: str
    topics: tuple[str, ...]
    instance: str | None = None
    assignor: Assignor = "sticky"
    rack: str | None = None
    session_timeout: float = 10.0
    max_poll_interval: float = 300.0
    auto_commit: bool = True
    commit_interval: float = 1.0
    client: str = ""


class Membership:
    """One member, through all its lives."""

    def __init__(
        self,
        settings: GroupSettings,
        coordinator: Coordinator,
        exchange: Exchange,
        new_id: Callable[[], str],
    ) -> None:
        self.settings = settings
        self.state: Literal["away", "joining", "member", "leaving"] = "away"
        self.id = ""
        self.epoch = 0
        self.held: dict[TopicPartition, str] = {}
        """Topic ids of what is held, what is being released among it."""
        self.releasing: set[TopicPartition] = set()
        self.on_change: Callable[[dict[TopicPartition, str], list[TopicPartition], float], None]
        """Told of partitions that are gained, with their topics' ids, and of those to be released."""
        self.on_out: Callable[[ZBrokerError, float], None]
        """Told that the member is out, and why; it holds nothing any more."""
        self.on_left: Callable[[], None]
        """Told that it has left, or that its time for that is up."""
        self._coordinator = coordinator
        self._exchange = exchange
        self._new_id = new_id
        self._answered_at = -inf
        """When the last answered heartbeat was sent."""
        self._calls: dict[int, tuple[Call, int, float]] = {}
        """Heartbeats under way: the call, its number among all of this member's, and when it was sent."""
        self._number = 0
        self._said: dict[TopicPartition, str] = {}
        """What the coordinator has said last that the member may read."""
        self._released: dict[TopicPartition, int] = {}
        """The number of the first heartbeat that no longer names it."""
        self._news = False
        """Whether what is owned is to be said, because it has changed or because an answer was lost."""
        self._next_at = 0.0
        self._early = 0
        self._stale = 0
        self._leave_epoch = -1
        self._leave_by = 0.0

    @property
    def fence_at(self) -> float:
        """The moment from which nothing may be handed out."""
        return self._answered_at + self.settings.session_timeout

    # What its owner asks for ---

    def join(self, now: float) -> None:
        """Joins, under a new id."""
        if self.state == "away":
            self._forget()
            self.state = "joining"
            self.id = self._new_id()
            self.epoch = 0
            self._news = True
            self._next_at = now

    def release(self, places: Iterable[TopicPartition]) -> None:
        """These are read no more, and their positions are committed."""
        for place in places:
            if self.held.pop(place, None) is not None:
                self.releasing.discard(place)
                self._released[place] = self._number + 1
                self._news = True

    def leave(self, *, keep: bool, deadline: float) -> None:
        """Leaves for good, or (`keep`, a static member) for a restart; `on_left` is told at the deadline at last."""
        if self.state == "away" or not self._number:
            self._end()
            self.on_left()
            return
        self._drop_calls()
        self.state = "leaving"
        self._leave_epoch = -2 if keep and self.settings.instance is not None else -1
        self._leave_by = deadline
        self._next_at = 0.0

    def drop(self) -> None:
        """Is out without a word: there is nobody to say it to."""
        self._end()

    # What the thread calls ---

    def step(self, now: float) -> float | None:
        """Sends what is due; answers when it wants to be called again."""
        if self.state == "away":
            return None
        if self.state == "leaving" and now >= self._leave_by:
            self._end()
            self.on_left()
            return None
        address = self._coordinator.address
        if address is None:
            return self._leave_by if self.state == "leaving" else None
        for call, _, _ in list(self._calls.values()):
            if call.address != address:  # there is another coordinator
                self._exchange.abandon(call)
                del self._calls[call.id]
                self._news = True
        in_flight = len(self._calls)
        may_speak = not in_flight or (
            in_flight == 1 and self._news and self.state == "member"
        )  # one that is held is answered as soon as the next one is there
        if may_speak and (now >= self._next_at or (self._news and self.state == "member")):
            self._send(now)
        if self.state == "leaving":
            return self._leave_by
        return None if self._calls else self._next_at

    def _send(self, now: float) -> None:
        settings, address = self.settings, self._coordinator.address
        assert address is not None
        self._number += 1
        release = min(max(settings.max_poll_interval, RELEASE_LEAST), RELEASE_MOST)
        wait = 0.0 if self.state == "leaving" else settings.session_timeout * WAIT_SHARE
        epoch = {"joining": 0, "leaving": self._leave_epoch}.get(self.state, self.epoch)
        message = messages.GroupHeartbeat(
            group=settings.group, member=self.id, member_epoch=epoch, instance=settings.instance,
            topics=list(settings.topics) if self.state == "joining" else [],
            owned=owned_list(self.held) if self._news else None,
            assignor=settings.assignor, rack=settings.rack,
            session_timeout=int(settings.session_timeout * 1000), release_timeout=int(release * 1000),
            client=settings.client, wait=int(wait * 1000),
        )  # fmt: skip
        self._news = False
        patience = max(ANSWER_LEAST, settings.session_timeout * ANSWER_SHARE)
        call = self._exchange.request(
            address, message, self._on_answer, now=now, timeout=wait + patience
        )
        self._calls[call.id] = (call, self._number, now)

    def _on_answer(self, call: Call, outcome: Outcome, _body: Body, now: float) -> None:
        entry = self._calls.pop(call.id, None)
        if entry is None:
            return
        _, number, sent_at = entry
        if isinstance(outcome, messages.GroupHeartbeatReply):
            self._coordinator.proven()
            if self.state == "leaving":
                self._end()
                self.on_left()
            else:
                self._answered(outcome, number, sent_at, now)
            return
        error = (
            outcome
            if isinstance(outcome, ZBrokerError)
            else ZBrokerError(f"unexpected answer: {outcome!r}")
        )
        self._news = True
        if isinstance(error, StaleMemberEpoch):
            self._stale += 1
            self._next_at = now + EARLY_GAP * 2**self._stale
            if self._stale >= STALE_PATIENCE:
                self._out(MemberFenced(str(error)), now)
        elif error.retriable:
            self._coordinator.lost(call.address, error, now)
            self._next_at = now
        else:
            self._out(error, now)

    def _answered(
        self, reply: messages.GroupHeartbeatReply, number: int, sent_at: float, now: float
    ) -> None:
        self._answered_at = max(self._answered_at, sent_at)
        self._stale = 0
        if reply.member_epoch < self.epoch:
            return  # of a time before: what followed has been heard already
        new = reply.assignment is not None or reply.member_epoch != self.epoch
        self.state = "member"
        self.epoch = reply.member_epoch
        if reply.assignment is not None:
            self._news = True  # that it came is told by what is owned
            self._said = {
                TopicPartition(topic.topic, partition): topic.topic_id
                for topic in reply.assignment
                for partition in topic.partitions
            }
        self._pace(new, sent_at, now)
        self._compare(number, now)

    def _pace(self, new: bool, sent_at: float, now: float) -> None:
        """When the next heartbeat is due: at once, unless the coordinator answers at once without a reason."""
        wait = self.settings.session_timeout * WAIT_SHARE
        if new or now - sent_at >= wait / 2:
            self._early = 0
            self._next_at = now
        else:
            self._next_at = max(now, sent_at + min(wait, EARLY_GAP * 2**self._early))
            self._early = min(self._early + 1, 10)

    def _compare(self, number: int, now: float) -> None:
        """What is held, against what the answer to the heartbeat `number` says."""
        said = self._said
        lost = [
            place
            for place, topic_id in self.held.items()
            if said.get(place) != topic_id and place not in self.releasing
        ]
        for place in [one for one, since in self._released.items() if since <= number]:
            del self._released[place]
        gained = {
            place: topic_id
            for place, topic_id in said.items()
            if place not in self.held and place not in self._released
        }
        self.releasing.update(lost)
        self.held.update(gained)
        if gained or lost:
            self.on_change(gained, lost, now)

    # Ends ---

    def _out(self, error: ZBrokerError, now: float) -> None:
        left = self.state == "leaving"
        self._end()
        if left:
            self.on_left()
        else:
            if isinstance(error, UnknownGroup):
                error = MemberFenced(f"the group {self.settings.group!r} is gone")
            self.on_out(error, now)

    def _end(self) -> None:
        self._drop_calls()
        self._forget()
        self.state = "away"

    def _forget(self) -> None:
        self.held.clear()
        self.releasing.clear()
        self._said = {}
        self._released.clear()
        self._answered_at = -inf
        self._number = self._early = self._stale = 0

    def _drop_calls(self) -> None:
        for call, _, _ in self._calls.values():
            self._exchange.abandon(call)
        self._calls.clear()


def owned_list(held: dict[TopicPartition, str]) -> list[messages.TopicPartitions]:
    """Partitions with their topics' ids, as the wire has them."""
    found: dict[tuple[str, str], list[int]] = {}
    for (topic, partition), topic_id in sorted(held.items()):
        found.setdefault((topic_id, topic), []).append(partition)
    return [
        messages.TopicPartitions(topic_id=topic_id, topic=topic, partitions=numbers)
        for (topic_id, topic), numbers in found.items()
    ]
