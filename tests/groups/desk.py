"""A coordinator by itself: each request is answered at once, and the answers are kept by name."""

from __future__ import annotations

import itertools
from typing import Any

from groups.world import WALL, as_plain, catalog, grouped

from zbroker.errors import ZBrokerError
from zbroker.groups.catalog import Catalog
from zbroker.groups.coordinator import Coordinator
from zbroker.groups.records import Record, decode, encode
from zbroker.groups.state import State
from zbroker.protocol.messages import (
    CommitOffsets,
    GroupHeartbeat,
    GroupHeartbeatReply,
    GroupOffset,
)


class Desk:
    """Members are played by the test; `answers` has what each of their requests was answered, by its number."""

    def __init__(self, **partitions: int) -> None:
        self.now, self.wall = 0, WALL
        self.coordinator = Coordinator(State(), catalog(**partitions), self.now)
        self.records: list[Record] = []
        self.new: list[Record] = []
        self.answers: dict[int, Any] = {}
        self.numbers = itertools.count(1)

    def _take(self) -> None:
        self.new, answers = self.coordinator.outcome.take()
        self.records += self.new
        for number, found in answers:
            assert number not in self.answers, "answered twice"
            self.answers[number] = found

    def send(self, member: str, epoch: int = 0, *topics: str, **fields: Any) -> int:
        """A heartbeat; its number."""
        number = next(self.numbers)
        owned = fields.pop("owned", None)
        if owned is not None:
            fields["owned"] = grouped({(f"id-{topic}", part) for topic, part in owned})
        request = GroupHeartbeat(
            group="g", member=member, member_epoch=epoch, topics=list(topics), **fields
        )
        try:
            self.coordinator.heartbeat(number, request, self.now, self.wall)
        except ZBrokerError as error:
            self.answers[number] = error
        self._take()
        return number

    def beat(self, member: str, epoch: int = 0, *topics: str, **fields: Any) -> Any:
        """A heartbeat's answer, for which a target is waited for where one is due."""
        number = self.send(member, epoch, *topics, **fields)
        if number not in self.answers and not fields.get("wait"):
            self.tick(2000)
        return self.answers[number]

    def commit(
        self, member: str, epoch: int, *positions: tuple[str, int, int], nth: int = -1
    ) -> Any:
        """A commit's answer."""
        number = next(self.numbers)
        request = CommitOffsets(
            group="g", member=member, member_epoch=epoch, number=nth,
            offsets=[GroupOffset(topic_id=f"id-{topic}", partition=part, offset=at) for topic, part, at in positions],
        )  # fmt: skip
        try:
            self.coordinator.commit(number, request, self.wall)
        except ZBrokerError as error:
            self.answers[number] = error
        self._take()
        return self.answers[number]

    def tick(self, ms: int = 100) -> None:
        """Time passes, in steps of a tick."""
        for _ in range(max(1, ms // 100)):
            self.now += min(ms, 100)
            self.wall += min(ms, 100)
            self.coordinator.on_tick(self.now, self.wall)
            self._take()

    def set_topics(self, seen: Catalog) -> None:
        """Topics come, go and grow."""
        self.coordinator.targets.catalog = seen
        self.coordinator.targets.look_at_topics()

    def take_over(self) -> None:
        """Another node coordinates, with the same log."""
        state = State()
        for record in self.records:
            _, key, value, _ = encode(record)
            state.apply(decode(key, value))
        assert as_plain(state) == as_plain(self.coordinator.state)
        self.coordinator = Coordinator(state, self.coordinator.targets.catalog, self.now)
        self.tick()

    def owns(self, member: str) -> list[tuple[str, int]]:
        """What a member may read, by the records."""
        group = self.coordinator.state.groups["g"]
        return sorted(
            (topic.removeprefix("id-"), part) for topic, part in group.members[member].assigned
        )


def parts(reply: Any) -> list[tuple[str, int]] | None:
    """The assignment in a reply."""
    assert isinstance(reply, GroupHeartbeatReply), reply
    if reply.assignment is None:
        return None
    return [
        (each.topic_id.removeprefix("id-"), part)
        for each in reply.assignment
        for part in each.partitions
    ]
