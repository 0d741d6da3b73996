"""Commits of a member, one after the other, each repeated until it is answered for good.

Owns what is on its way to the coordinator and what is known to be committed. Pure. Never decides what is committed:
that is its caller's (`grouping`).

================================ =========================================================================
what the coordinator answers     what follows
================================ =========================================================================
it is committed                  the end; positions that it refuses are told with their errors
the epoch is stale               the same again after a pause, with the epoch that a heartbeat brings
it is not the coordinator,       the same again, to whoever it is by then
or no answer
anything else                    the end, with the error
nothing before the deadline      the end, with the last error: the outcome is not known
================================ =========================================================================

They go out one at a time, and each has its number: one that was given up and arrives late, by a connection that was
lost here and not there, does not overwrite a later one. Repeated, one has the epoch that it had: it is not for what is
given to the member after it. What is too much for one request goes in parts, each a commit of partitions of its own.
A deadline holds wherever a commit stands: nobody waits longer for being behind others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from itertools import count
from typing import NamedTuple

from zbroker.client.coordinator import Coordinator
from zbroker.client.exchange import Body, Call, Exchange, Outcome, Retries
from zbroker.client.membership import Membership
from zbroker.client.parts import parts_of
from zbroker.client.records import TopicPartition
from zbroker.errors import RequestTimedOut, StaleMemberEpoch, ZBrokerError, from_wire
from zbroker.protocol import messages

ATTEMPT = 5.0
"""Seconds that the coordinator has to answer."""


class Position(NamedTuple):
    """Where a group is in a partition: the first offset that is not done, and the leader epoch of the one before."""

    offset: int
    epoch: int = -1


class Commit:
    """Positions to be committed together. `done(error)` is called once; the error is None when all are.

    One without positions only waits for its turn.
    """

    __slots__ = ("call", "deadline", "done", "epoch", "last", "number", "positions")

    def __init__(
        self,
        positions: dict[TopicPartition, Position],
        done: Callable[[ZBrokerError | None], None],
        deadline: float | None = None,
    ) -> None:
        self.positions = positions
        self.done = done
        self.deadline = deadline
        self.call: Call | None = None
        self.last: ZBrokerError | None = None
        self.number = -1
        """Which of the member's commits it is, once it is submitted."""
        self.epoch = -1
        """The member's epoch at that time: it is not for what is given to the member later; -1: the latest."""


class Commits:
    """Every commit of one member."""

    def __init__(
        self,
        membership: Membership,
        coordinator: Coordinator,
        exchange: Exchange,
        random: Callable[[], float],
    ) -> None:
        self.committed: dict[TopicPartition, int] = {}
        """Offsets that are known to be committed, of the partitions that are held."""
        self._membership = membership
        self._coordinator = coordinator
        self._exchange = exchange
        self._queue: deque[Commit] = deque()
        self._retries = Retries(random)
        self._retry_at = 0.0
        self._numbers = count()

    @property
    def busy(self) -> bool:
        """Whether anything is on its way."""
        return bool(self._queue)

    def concern(self, place: TopicPartition) -> bool:
        """Whether a position of a partition is on its way, so that it is not known what will be committed."""
        return any(place in commit.positions for commit in self._queue)

    def submit(self, commit: Commit) -> None:
        """Puts a commit on its way, behind those that are."""
        for part in _parts(commit):
            part.number = next(self._numbers)
            part.epoch = self._membership.epoch
            self._queue.append(part)

    def settle(
        self, places: Iterable[TopicPartition], done: Callable[[ZBrokerError | None], None]
    ) -> None:
        """Calls back once no position of these partitions is on its way any more."""
        if any(map(self.concern, places)):
            self.submit(Commit({}, done))
        else:
            done(None)

    def fail_all(self, error: ZBrokerError) -> None:
        """The member is out, or has left."""
        self.committed.clear()
        while self._queue:
            self._finish(self._queue[0], error)

    def step(self, now: float) -> float | None:
        """Sends what is due; answers when it wants to be called again."""
        self._give_up_late(now)
        if not self._queue:
            return None
        wanted = [commit.deadline for commit in self._queue if commit.deadline is not None]
        commit, address = self._queue[0], self._coordinator.address
        if commit.call is not None and address not in (None, commit.call.address):
            self._exchange.abandon(commit.call)  # there is another coordinator
            commit.call = None
        if commit.call is None and address is not None:
            if now >= self._retry_at:
                self._send(commit, now)
            else:
                wanted.append(self._retry_at)
        return min(wanted, default=None)

    def _give_up_late(self, now: float) -> None:
        """Ends the commits whose time is up, those that wait behind others among them."""
        late = [one for one in self._queue if one.deadline is not None and now >= one.deadline]
        for commit in late:
            if commit in self._queue:
                for place in commit.positions:
                    self.committed.pop(place, None)  # it may have arrived all the same
                self._finish(commit, _too_late(commit))

    def _send(self, commit: Commit, now: float) -> None:
        membership, address = self._membership, self._coordinator.address
        assert address is not None
        epoch = membership.epoch if commit.epoch < 0 else commit.epoch
        message = messages.CommitOffsets(
            group=membership.settings.group, member=membership.id, member_epoch=epoch,
            number=commit.number, offsets=[
                messages.GroupOffset(
                    topic_id=membership.held.get(place, ""), topic=place.topic, partition=place.partition,
                    offset=position.offset, epoch=position.epoch,
                )
                for place, position in commit.positions.items()
            ],
        )  # fmt: skip
        commit.call = self._exchange.request(
            address, message, self._on_answer, now=now, timeout=ATTEMPT
        )

    def _on_answer(self, call: Call, outcome: Outcome, _body: Body, now: float) -> None:
        commit = self._queue[0] if self._queue else None
        if commit is None or commit.call is not call:
            return
        commit.call = None
        if isinstance(outcome, messages.CommitOffsetsReply):
            self._coordinator.proven()
            self._retries.reset()
            self._finish(commit, self._refusals(commit, outcome))
            return
        error = (
            outcome
            if isinstance(outcome, ZBrokerError)
            else ZBrokerError(f"unexpected answer: {outcome!r}")
        )
        if not error.retriable:
            self._finish(commit, error)
            return
        commit.last = error
        self._retry_at = now + self._retries.after(error)
        if isinstance(error, StaleMemberEpoch):
            commit.epoch = -1
        else:
            self._coordinator.lost(call.address, error, now)

    def _refusals(self, commit: Commit, reply: messages.CommitOffsetsReply) -> ZBrokerError | None:
        refused = {TopicPartition(one.topic, one.partition): one for one in reply.refused}
        for place, position in commit.positions.items():
            if place not in refused and place in self._membership.held:
                self.committed[place] = position.offset
        if not refused:
            return None
        (topic, partition), first = next(iter(refused.items()))
        places = sorted(refused)
        return from_wire(
            first.error or "internal",
            f"offset {first.offset} of {topic}/{partition} was not committed"
            + (f", nor {len(places) - 1} more" if len(places) > 1 else "")
            + f": {_REASONS.get(first.error or '', first.error)}",
            {"partitions": [list(place) for place in places]},
        )

    def _finish(self, commit: Commit, error: ZBrokerError | None) -> None:
        self._queue.remove(commit)
        if commit.call is not None:
            self._exchange.abandon(commit.call)
            commit.call = None
        commit.done(error)
        while self._queue and not self._queue[0].positions:
            self._queue.popleft().done(None)


_REASONS = {
    "not_owned": "the partition is not this member's, or not any more",
    "stale_member_epoch": "the member was given the partition at a later epoch",
    "unknown_topic": "there is no such topic",
    "unknown_partition": "the topic has no such partition",
}


def _parts(commit: Commit) -> list[Commit]:
    """A commit as it is sent, at once or in parts; it is answered once all of them are, with the first error."""
    parts = parts_of(commit.positions)
    if len(parts) == 1:
        return [commit]
    errors: list[ZBrokerError | None] = []

    def done(error: ZBrokerError | None) -> None:
        errors.append(error)
        if len(errors) == len(parts):
            commit.done(next((one for one in errors if one is not None), None))

    return [Commit(positions, done, commit.deadline) for positions in parts]


def _too_late(commit: Commit) -> ZBrokerError:
    last = commit.last
    why = f" ({last})" if last is not None else ""
    error = RequestTimedOut(
        f"the group's coordinator did not answer in time{why}", outcome_unknown=True
    )
    error.__cause__ = last
    return error
