"""Which member of a group is to have which partition.

Pure functions of members, topics and what was so before. Each partition of a topic that anybody subscribes to goes to
exactly one member that does; where subscriptions are equal, what two members get differs by one partition at most.

- `sticky`: members keep what they have, as far as balance lets them; what is free goes to members near its leader
  (whose `rack` is the leader's name, or the leader's rack) where balance lets it, and otherwise to who has least.
- `range`: each topic's partitions in order, in equal runs, to its members in the order of their names (of instances,
  where they have one): partition 3 of two topics of the same size goes to the same member. Knows no past.

Takes near-linear time where subscriptions are equal, and with each different subscription a pass more.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from zbroker.groups.catalog import Catalog
from zbroker.groups.state import TopicPartition

Target = dict[str, list[TopicPartition]]
"""Partitions by member."""


class Candidate(msgspec.Struct):
    """A member, as far as it matters for what it gets.

    Attributes:
        topics: ids of the topics that it subscribes to.
        order: the name by which `range` sorts it.
        before: what it has, or was to have.
    """

    topics: tuple[str, ...]
    order: str = ""
    rack: str | None = None
    before: Iterable[TopicPartition] = ()


def assign(assignor: str, members: Mapping[str, Candidate], catalog: Catalog) -> Target:
    """The target of every member, by the named assignor."""
    if assignor == "range":
        return range_target(members, catalog)
    return sticky_target(members, catalog)


# Range ---


def range_target(members: Mapping[str, Candidate], catalog: Catalog) -> Target:
    """See the module."""
    target: Target = {member: [] for member in members}
    order = sorted(members, key=lambda member: (members[member].order or member, member))
    subscribers: dict[str, list[str]] = {}
    for member in order:
        for topic_id in members[member].topics:
            subscribers.setdefault(topic_id, []).append(member)
    for topic_id, named in subscribers.items():
        each, more = divmod(len(catalog.by_id[topic_id].leaders), len(named))
        at = 0
        for place, member in enumerate(named):
            count = each + (place < more)
            target[member] += [(topic_id, number) for number in range(at, at + count)]
            at += count
    return target


# Sticky ---


def sticky_target(members: Mapping[str, Candidate], catalog: Catalog) -> Target:
    """See the module."""
    ordered = {member: members[member] for member in sorted(members)}
    target, free = _keep(ordered, catalog)
    if len({candidate.topics for candidate in ordered.values()}) == 1:
        _fill_equal(ordered, target, free, catalog)
    else:
        _fill_unequal(ordered, target, free, catalog)
    return target


def _keep(
    members: Mapping[str, Candidate], catalog: Catalog
) -> tuple[Target, dict[TopicPartition, None]]:
    """What everyone has and subscribes to still, and the partitions that nobody has, a topic after the other."""
    free: dict[TopicPartition, None] = {}
    subscribed = dict.fromkeys(
        topic_id for candidate in members.values() for topic_id in candidate.topics
    )
    for topic_id, count in catalog.counts(subscribed).items():
        for number in range(count):
            free[topic_id, number] = None
    target: Target = {}
    for member, candidate in members.items():
        wanted = set(candidate.topics)
        kept = []
        for partition in candidate.before:
            if partition[0] in wanted and partition in free:
                del free[partition]
                kept.append(partition)
        target[member] = kept
    return target, free


def _is_near(candidate: Candidate, partition: TopicPartition, catalog: Catalog) -> bool:
    """Whether the partition's leader is the node, or stands in the rack, that the member names."""
    leader = catalog.by_id[partition[0]].leaders[partition[1]]
    return leader is not None and candidate.rack in (leader, catalog.racks.get(leader, leader))


def _fill_equal(
    members: Mapping[str, Candidate],
    target: Target,
    free: dict[TopicPartition, None],
    catalog: Catalog,
) -> None:
    """All subscribe to the same: everyone gets the same number, some of them one more."""
    total = len(free) + sum(map(len, target.values()))
    floor, more = divmod(total, len(members))
    # Those who have most keep the one more, so that as few as possible move.
    room: dict[str, int] = {}
    for member in sorted(target, key=lambda member: (-len(target[member]), member)):
        kept = target[member]
        most = floor
        if more and len(kept) > floor:
            most, more = floor + 1, more - 1
        if len(kept) > most:
            _drop(members[member], kept, len(kept) - most, free, catalog)
        if len(kept) < floor:
            room[member] = floor - len(kept)
    spare = [member for member in sorted(target) if len(target[member]) <= floor] if more else []
    left = _give_near(members, target, free, room, spare, more, catalog)
    more -= left.used
    takers = deque(member for member in sorted(room) if room[member])
    for partition in left.partitions:
        if takers:
            member = takers.popleft()
            room[member] -= 1
            if room[member]:
                takers.append(member)
        else:
            member = left.spare.popleft()
        target[member].append(partition)


def _drop(
    candidate: Candidate,
    kept: list[TopicPartition],
    count: int,
    free: dict[TopicPartition, None],
    catalog: Catalog,
) -> None:
    """Takes partitions from who has too many: first those whose leaders are far, then the last ones."""
    if candidate.rack is not None:
        kept.sort(key=lambda partition: not _is_near(candidate, partition, catalog))
    for partition in kept[len(kept) - count :]:
        free[partition] = None
    del kept[len(kept) - count :]


class _Left(msgspec.Struct):
    """What nearness did not decide: partitions, who may have one more, how many of those were given."""

    partitions: list[TopicPartition]
    spare: deque[str]
    used: int


def _give_near(
    members: Mapping[str, Candidate],
    target: Target,
    free: Iterable[TopicPartition],
    room: dict[str, int],
    spare: Sequence[str],
    more: int,
    catalog: Catalog,
) -> _Left:
    """Free partitions to members near their leaders, as far as those have room."""
    near: dict[str, deque[str]] = {}
    near_spare: dict[str, deque[str]] = {}
    for member in room:
        if (rack := members[member].rack) is not None:
            near.setdefault(rack, deque()).append(member)
    for member in spare:
        if (rack := members[member].rack) is not None:
            near_spare.setdefault(rack, deque()).append(member)
    taken: set[str] = set()
    left: list[TopicPartition] = []
    if not near and not near_spare:
        return _Left(list(free), deque(spare), 0)
    for partition in free:
        leader = catalog.by_id[partition[0]].leaders[partition[1]]
        places = () if leader is None else (leader, catalog.racks.get(leader, leader))
        for place in places:
            if near.get(place):
                member = near[place].popleft()
                room[member] -= 1
                if room[member]:
                    near[place].append(member)
                break
        else:
            for place in places:
                if len(taken) < more and near_spare.get(place):
                    member = near_spare[place].popleft()
                    taken.add(member)
                    break
            else:
                left.append(partition)
                continue
        target[member].append(partition)
    return _Left(left, deque(member for member in spare if member not in taken), len(taken))


def _fill_unequal(
    members: Mapping[str, Candidate],
    target: Target,
    free: Iterable[TopicPartition],
    catalog: Catalog,
) -> None:
    """Members subscribe to different topics: free ones to who has least, then from who has more to who has less."""
    loads = _Loads(members, target)
    for partition in sorted(
        free, key=lambda partition: (loads.subscribers(partition[0]), partition)
    ):
        loads.give(partition, loads.least(partition, catalog))
    moved = True
    while moved:
        moved = False
        for member in sorted(target, key=lambda member: (-len(target[member]), member)):
            for partition in list(target[member]):
                other = loads.least(partition, catalog)
                if len(target[member]) - len(target[other]) >= 2:
                    target[member].remove(partition)
                    loads.changed(member)
                    loads.give(partition, other)
                    moved = True


class _Loads:
    """How much everyone has, so that who has least of a topic's members is found quickly: a heap a subscription."""

    def __init__(self, members: Mapping[str, Candidate], target: Target) -> None:
        self._members = members
        self._target = target
        self._heaps: dict[tuple[str, ...], list[tuple[int, str]]] = {}
        self._by_topic: dict[str, list[tuple[str, ...]]] = {}
        self._counts: dict[str, int] = {}
        for member, candidate in members.items():
            if candidate.topics not in self._heaps:
                self._heaps[candidate.topics] = []
                for topic_id in candidate.topics:
                    self._by_topic.setdefault(topic_id, []).append(candidate.topics)
            self._heaps[candidate.topics].append((len(target[member]), member))
            for topic_id in candidate.topics:
                self._counts[topic_id] = self._counts.get(topic_id, 0) + 1
        for heap in self._heaps.values():
            heapq.heapify(heap)

    def subscribers(self, topic_id: str) -> int:
        """How many subscribe to a topic."""
        return self._counts.get(topic_id, 0)

    def least(self, partition: TopicPartition, catalog: Catalog) -> str:
        """The member that has least of those who subscribe to the partition's topic; of equals a near one."""
        tops = [self._top(subscription) for subscription in self._by_topic[partition[0]]]
        fewest = min(load for load, _ in tops)
        names = [member for load, member in tops if load == fewest]
        for member in names:
            if _is_near(self._members[member], partition, catalog):
                return member
        return min(names)

    def give(self, partition: TopicPartition, member: str) -> None:
        """A member gets one."""
        self._target[member].append(partition)
        self.changed(member)

    def changed(self, member: str) -> None:
        """A member has more or less than before."""
        heap = self._heaps[self._members[member].topics]
        heapq.heappush(heap, (len(self._target[member]), member))

    def _top(self, subscription: tuple[str, ...]) -> tuple[int, str]:
        heap = self._heaps[subscription]
        while heap[0][0] != len(self._target[heap[0][1]]):
            heapq.heappop(heap)
        return heap[0]
