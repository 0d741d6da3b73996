"""A coordinator of one group as a script: enough of one to try members on, and to misbehave as a test asks it to.

Partitions are given by `give`, or in equal shares as members come and go. A partition is in a member's assignment only
once nobody else holds it. Attach it to a `FakeBroker` as its interceptor.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from fakebroker import FakeBroker

from zbroker.errors import GroupNotEmpty, MemberFenced, NotOwned
from zbroker.protocol import messages

Place = tuple[str, int]


class FakeMember:
    """What the coordinator knows of a member."""

    def __init__(self, request: messages.GroupHeartbeat) -> None:
        self.id = request.member
        self.instance = request.instance
        self.epoch = 1
        self.said: set[Place] | None = None
        """The assignment as last told."""
        self.owned: set[Place] = set()
        self.heard = time.monotonic()
        self.session = request.session_timeout / 1000
        self.beats = 0
        self.number = 0


class FakeGroups:
    """See above. `hook(request)` may return what is answered instead, None for the usual."""

    def __init__(self, topics: dict[str, int], *, sharing: bool = True) -> None:
        self.places = [(topic, n) for topic, count in topics.items() for n in range(count)]
        self.members: dict[str, FakeMember] = {}
        self.target: dict[Place, str] = {}
        self.offsets: dict[Place, messages.GroupOffset] = {}
        self.log: list[messages.CommitOffsets] = []
        self.fenced: dict[str, str] = {}
        """Members that are out, and why."""
        self.left: list[tuple[str, int]] = []
        self.hook: Callable[[Any], Any] = lambda _request: None
        self.sharing = sharing
        self.ids: dict[str, str] = {}

    def __call__(self, broker: FakeBroker, request: Any, _body: Any) -> Any:
        self.ids = broker.ids
        found = self.hook(request)
        if found is not None:
            return found
        self._expire()
        match request:
            case messages.FindCoordinator():
                return messages.FindCoordinatorReply(
                    node=broker.name, host="127.0.0.1", port=broker.port, epoch=1
                )
            case messages.GroupHeartbeat():
                return self._beat(request)
            case messages.CommitOffsets():
                return self._commit(request)
            case messages.FetchOffsets():
                return messages.FetchOffsetsReply(offsets=self._fetch(request))
            case messages.DescribeGroup():
                return self._describe()
            case messages.ListGroups():
                return messages.ListGroupsReply(
                    groups=[
                        messages.GroupListing(group="g", state="stable", members=len(self.members))
                    ]
                )
            case messages.DeleteGroup():
                if self.members:
                    return GroupNotEmpty("the group has members")
                self.offsets.clear()
                return messages.DeleteGroupReply()
        return None

    # What tests ask for ---

    def give(self, member: str, *places: Place) -> None:
        """These are a member's from now on, once others have released them."""
        self.target.update(dict.fromkeys(places, member))

    def fence(self, member: str, reason: str = "session") -> None:
        """A member is out."""
        self.fenced[member] = reason
        self.members.pop(member, None)
        self._share()

    def committed(self) -> dict[Place, int]:
        return {place: one.offset for place, one in self.offsets.items()}

    # The protocol ---

    def _expire(self) -> None:
        now = time.monotonic()
        for member in list(self.members.values()):
            if now - member.heard > member.session:
                self.fence(member.id)

    def _share(self) -> None:
        if not self.sharing:
            return
        names = list(self.members)
        if not names:
            self.target.clear()
            return
        least, more = divmod(len(self.places), len(names))
        counts = dict.fromkeys(names, 0)
        kept: dict[Place, str] = {}
        for place in self.places:
            owner = self.target.get(place)
            if owner in counts and (counts[owner] < least or (counts[owner] == least and more)):
                more -= counts[owner] == least
                kept[place] = owner
                counts[owner] += 1
        for place in self.places:
            if place not in kept:
                owner = min(names, key=lambda name: counts[name])
                kept[place] = owner
                counts[owner] += 1
        self.target = kept

    def _may_read(self, member: FakeMember) -> set[Place]:
        held = {
            place for other in self.members.values() if other is not member for place in other.owned
        }
        return {
            place
            for place, owner in self.target.items()
            if owner == member.id and place not in held
        }

    def _beat(self, request: messages.GroupHeartbeat) -> Any:
        if request.member in self.fenced:
            return MemberFenced("you are out", reason=self.fenced[request.member])
        member = self.members.get(request.member)
        if request.member_epoch < 0:
            self.left.append((request.member, request.member_epoch))
            if member is not None and request.member_epoch == -1:
                del self.members[request.member]
                self._share()
            elif member is not None:
                member.owned &= set()
            return messages.GroupHeartbeatReply(member_epoch=-1)
        if member is None and request.member_epoch > 0:
            return MemberFenced("nobody of that name", reason="session")
        if member is None:
            member = self.members[request.member] = FakeMember(request)
            for other in list(self.members.values()):
                if request.instance and other.instance == request.instance and other is not member:
                    self.target = {
                        place: member.id if owner == other.id else owner
                        for place, owner in self.target.items()
                    }
                    self.fenced[other.id] = "replaced"
                    del self.members[other.id]
            self._share()
        member.heard = time.monotonic()
        member.beats += 1
        member.number += 1
        number = member.number
        if request.owned is not None:
            member.owned = {(one.topic, n) for one in request.owned for n in one.partitions}
            if member.said is None or not self._may_read(member) <= member.owned:
                member.said = None
        until = member.heard + request.wait / 1000

        def answer() -> Any:
            if member.id in self.fenced:
                return MemberFenced("you are out", reason=self.fenced[member.id])
            if member.id not in self.members:
                return "drop"
            reads = self._may_read(member)
            if reads != member.said:
                member.said = reads
                member.owned |= reads
                member.epoch += 1
                return self._reply(member, reads)
            if number != member.number or time.monotonic() >= until:
                return self._reply(member, None)
            return None

        return answer

    def _reply(self, member: FakeMember, reads: set[Place] | None) -> messages.GroupHeartbeatReply:
        assignment = None
        if reads is not None:
            topics: dict[str, list[int]] = {}
            for topic, number in sorted(reads):
                topics.setdefault(topic, []).append(number)
            assignment = [
                messages.TopicPartitions(topic_id=self.ids[topic], topic=topic, partitions=numbers)
                for topic, numbers in topics.items()
            ]
        return messages.GroupHeartbeatReply(
            member_epoch=member.epoch, group_epoch=member.epoch, assignment=assignment
        )

    def _commit(self, request: messages.CommitOffsets) -> Any:
        self.log.append(request)
        if request.member in self.fenced:
            return MemberFenced("you are out", reason=self.fenced[request.member])
        member = self.members.get(request.member)
        if not request.member and self.members:
            return GroupNotEmpty("the group has members")
        refused = []
        for one in request.offsets:
            place = (one.topic, one.partition)
            if member is not None and place not in member.owned:
                one.error = NotOwned.code
                refused.append(one)
            elif one.offset < 0:
                self.offsets.pop(place, None)
            else:
                self.offsets[place] = one
        return messages.CommitOffsetsReply(refused=refused)

    def _fetch(self, request: messages.FetchOffsets) -> list[messages.GroupOffset]:
        if request.partitions is None:
            return list(self.offsets.values())
        return [
            self.offsets.get((one.topic, n))
            or messages.GroupOffset(topic_id=one.topic_id, topic=one.topic, partition=n)
            for one in request.partitions
            for n in one.partitions
        ]

    def _describe(self) -> messages.DescribeGroupReply:
        return messages.DescribeGroupReply(
            state="stable" if self.members else "empty", epoch=1,
            members=[
                messages.GroupMember(
                    member=member.id, instance=member.instance, client="c", epoch=member.epoch,
                    assignment=self._reply(member, member.owned).assignment or [],
                )
                for member in self.members.values()
            ],
            offsets=list(self.offsets.values()),
        )  # fmt: skip
