"""A consumer group at work in a simulation: members that crash, freeze, leave and come, while everything goes wrong.

Owns the members' lives and what is asked of the group at the end: that within a session and some time after healing
every partition is somebody's, that everything is handed out and committed, and that every copy of the group's state is
the same.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from zbroker.testing.group_invariants import differences
from zbroker.testing.simulated_members import Readership, SimulatedMember
from zbroker.testing.timeline import SECOND

if TYPE_CHECKING:
    from zbroker.testing.cluster import SimulatedCluster
    from zbroker.testing.group_invariants import GroupWatch

GROUP = "readers"
MEMBERS_MAX = 5
SESSIONS = (1.5, 3.0)


class GroupWork:
    """One group. Nothing of it is left to chance but by the seed."""

    def __init__(
        self, cluster: SimulatedCluster, watch: GroupWatch, topics: tuple[str, ...], *, wild: bool
    ) -> None:
        """
        Args:
            wild: members come and go by themselves.
        """
        self.cluster = cluster
        self.watch = watch
        self.readership = Readership()
        self.rng = random.Random(f"{cluster.seed} group")
        self.session = self.rng.choice(SESSIONS)
        self._topics = topics
        self._assignor = self.rng.choice(("sticky", "sticky", "range"))
        self._wild = wild
        self._numbers = 0
        self._active = True
        for _ in range(self.rng.randint(1, 3)):
            self._start(self.rng.choice((None, None, "i1", "i2")))
        if wild:
            self._later()

    @property
    def alive(self) -> list[SimulatedMember]:
        """Members whose process is there."""
        return [member for member in self.readership.members if not member.stopped]

    def _start(self, instance: str | None) -> None:
        for member in self.alive:
            if instance is not None and member.instance == instance:
                return
        self._numbers += 1
        SimulatedMember(
            f"m{self._numbers}", self.cluster, self.readership, self._topics, group=GROUP,
            instance=instance, assignor=self._assignor, session=self.session,
        )  # fmt: skip

    # Members that come and go ---

    def _later(self) -> None:
        self.cluster.timeline.after(int(self.rng.uniform(0.1, 2.0) * SECOND), self._act)

    def _act(self) -> None:
        if not self._active:
            return
        alive = self.alive
        kind = self.rng.choice(("join", "join", "crash", "freeze", "leave", "restart"))
        if kind == "join" or not alive:
            if len(alive) < MEMBERS_MAX:
                self._start(self.rng.choice((None, "i1", "i2", "i3")))
        else:
            member = self.rng.choice(alive)
            if kind == "crash":
                member.crash()
            elif kind == "freeze":
                member.freeze()
                seconds = self.rng.choice((0.3, 0.9, 1.1, 2.0)) * self.session
                self.cluster.timeline.after(int(seconds * SECOND), member.thaw)
            elif kind == "leave":
                member.leave()
            elif member.instance is not None:
                member.crash()
                self._start(member.instance)
        self._later()

    def calm_down(self) -> None:
        """Nobody comes or goes any more; at least one is there."""
        self._active = False
        for member in self.alive:
            member.thaw()
        if all(member.leaving for member in self.alive):
            self._start(None)

    # What is to be true after healing ---

    def missing(
        self, partitions: Mapping[tuple[str, int], tuple[str, int, int]], *, excused: Iterable[str]
    ) -> str:
        """What the group has not got done; nothing where all is well.

        Args:
            partitions: topic ids, log starts and ends, by topic and number.
            excused: topics of which records may have been lost.
        """
        topics = {topic for topic, _ in partitions}
        owners = [place for each in self.alive for place in each.held if place.topic in topics]
        if sorted(owners) != sorted(partitions):
            have = ", ".join(f"{member.name}: {sorted(member.held)}" for member in self.alive)
            return f"every partition is to be one member's, and they have {have}"
        for (topic, number), (topic_id, start, end) in partitions.items():
            missed = self.readership.missed(topic_id, number, start, end)
            if missed and topic not in excused:
                return missed
            at = self.watch.promised.get((GROUP, topic_id, number), -1)
            if at < end and topic not in excused:
                return f"the group has committed {at} of {topic}/{number}, which ends at {end}"
        return ""

    def problems(self) -> list[str]:
        """What is wrong at rest."""
        for _ in range(20):
            found = differences(self.cluster)
            if not found:
                break
            self.cluster.run(0.5)
        return found
