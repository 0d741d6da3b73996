"""Each group's target: when a new one is made, and how members are brought to it.

Owns what is known of a group beside its records: its target, when the next is due, and who waits to be in. Joins do not
act by themselves: they wait, with everything else that asks for a new target, until one is due; of one group's targets
each comes `COALESCE_MS` after the last at the soonest, and later where the group is large.

============================= =====================================================================================
on                            effect
============================= =====================================================================================
something asks for a target   it is due at once, or a while after the last one
a target is due               the group's epoch goes up; who joins is in, and each member takes its next step
                              (`rebalance`), in one list of records; who has news is answered
the same at a new coordinator the target is made; where everyone has it nothing else happens
something is released         who is to have it takes its next step
============================= =====================================================================================
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import msgspec

from zbroker.groups import rebalance
from zbroker.groups.catalog import Catalog
from zbroker.groups.describe import by_topic
from zbroker.groups.outcome import Outcome, Token
from zbroker.groups.rebalance import Plan
from zbroker.groups.records import GroupKey, GroupRecord, GroupValue, MemberValue
from zbroker.groups.sessions import Seat, Sessions
from zbroker.groups.state import Group, Member, TopicPartition
from zbroker.protocol.messages import GroupHeartbeat, GroupHeartbeatReply

COALESCE_MS = 50
"""How long one group's target stands at least."""
MEMBERS_A_MS = 4
"""And a ms longer for so many members."""
MAKE_MAX = 1_000
"""Members whose targets are made in one go, but for the last group's: a few ms of work. The others follow."""
HEARTBEAT_MS = 2_500
"""How often a member is to be heard; sooner where its session is short."""


class Run(msgspec.Struct):
    """What is known of a group beside its records.

    Attributes:
        plan: the target; None where it is to be made.
        joining: requests of those who wait to be in, by member.
        due: when the next target is due, by the sessions' clock; None where the present one stands.
        not_before: when it may be at the soonest.
        rebalances: targets made.
    """

    plan: Plan | None = None
    joining: dict[str, tuple[Token, GroupHeartbeat]] = {}
    due: int | None = None
    not_before: int = 0
    rebalances: int = 0


class Targets:
    """The targets of one coordinator's groups.

    Attributes:
        catalog: the topics.
        runs: by group.
        rebalances: targets made, of all groups.
    """

    def __init__(self, outcome: Outcome, sessions: Sessions, catalog: Catalog) -> None:
        self.catalog = catalog
        self.runs: dict[str, Run] = {}
        self.rebalances = 0
        self._outcome = outcome
        self._sessions = sessions
        self._due: dict[str, None] = {}

    def run(self, group: str) -> Run:
        """What is known of a group."""
        return self.runs.setdefault(group, Run())

    def forget(self, group: str) -> None:
        """A group has no members any more."""
        self.runs.pop(group, None)
        self._due.pop(group, None)

    def is_due(self, group: str) -> bool:
        """Whether a group's next target is on its way."""
        return group in self._due

    @property
    def idle(self) -> bool:
        """Whether no target is due, and so nobody waits to be in."""
        return not self._due

    def plan(self, group: str) -> Plan | None:
        """A group's target."""
        run = self.runs.get(group)
        return None if run is None else run.plan

    def everyone(self) -> Iterator[Token]:
        """Takes out whoever waits to be in."""
        for run in self.runs.values():
            yield from (token for token, _ in run.joining.values())
            run.joining = {}

    # When ---

    def ask(self, group: str) -> None:
        """A new target is due, at once or a while after the last one."""
        run = self.run(group)
        if run.due is None:
            run.due = max(self._sessions.clock, run.not_before)
            self._due[group] = None

    def make(self) -> None:
        """Makes the targets that are due, as many as are not too much work for now."""
        if self._outcome.refusal is not None:
            return
        members = 0
        for name in list(self._due):
            run = self.runs[name]
            if run.due is not None and run.due <= self._sessions.clock:
                del self._due[name]
                run.due = None
                members += self._make(name, run)
                if members >= MAKE_MAX:
                    return

    def look_at_topics(self) -> None:
        """Topics came, went or grew: groups whose subscriptions mean other partitions than before get new targets."""
        catalog = self.catalog
        for name, run in self.runs.items():
            group = self._outcome.state.groups.get(name)
            if group is None or run.plan is None or run.due is not None:
                continue
            abouts = {each: member.about for each, member in group.members.items()}
            if rebalance.topics_meant(abouts, catalog) != run.plan.topics:
                self.ask(name)

    # How ---

    def _make(self, name: str, run: Run) -> int:
        """Makes one group's target; how many members that was for."""
        group = self._outcome.state.groups.get(name)
        joining, run.joining = run.joining, {}
        joined = {member: joined_value(request) for member, (_, request) in joining.items()}
        known = {} if group is None else group.members
        abouts = {**{each: member.about for each, member in known.items()}, **joined}
        run.not_before = self._sessions.clock + COALESCE_MS + len(abouts) // MEMBERS_A_MS
        if not abouts:
            self.forget(name)
            return 1
        new = run.plan is None
        run.plan = plan = rebalance.make_plan(group, abouts, run.plan, self.catalog)
        if new and not joining and group is not None and rebalance.is_reached(group, plan):
            return len(abouts)  # nothing happened but that another node took over
        run.rebalances += 1
        self.rebalances += 1
        epoch = 1 if group is None else group.epoch + 1
        self._outcome.write(GroupRecord(GroupKey(name), GroupValue(epoch, plan.assignor)))
        group = self._outcome.state.groups[name]
        self._outcome.tell(
            "group_assigned", group=name, epoch=epoch, assignor=plan.assignor,
            members=len(abouts), partitions=len(plan.owners),
        )  # fmt: skip
        for member in list(group.members.values()):
            self._step(group, plan, member)
        for each, (token, _) in joining.items():
            self._let_in(group, plan, each, joined[each], token)
        return len(abouts)

    def _let_in(
        self, group: Group, plan: Plan, name: str, about: MemberValue, token: Token
    ) -> None:
        """A member is in, with what is free of its target."""
        about = msgspec.structs.replace(about, epoch=group.epoch)
        value = rebalance.next_step(group, plan, Member(name, about, {}, {}))
        self._outcome.write_member(group, name, value or about)
        seat = self._sessions.add(group.name, name, about.session_timeout)
        self.tell(token, seat, group, group.members[name])

    def _step(self, group: Group, plan: Plan, member: Member) -> None:
        """A member's next step, where there is one; it is told at once if it waits."""
        value = rebalance.next_step(group, plan, member)
        if value is None:
            return
        self._outcome.write_member(group, member.member, value)
        member = group.members[member.member]
        seat = self.seat(group, member)
        self.watch_release(seat, member)
        seat.version += 1
        if seat.held is not None:
            token, seat.held = seat.held.token, None
            self.tell(token, seat, group, member)

    def release(self, group: Group, member: Member, partitions: Collection[TopicPartition]) -> None:
        """A member has given partitions back: whoever is to have them gets them."""
        if not partitions:
            return
        self._outcome.write_member(group, member.member, rebalance.without(member, partitions))
        member = group.members[member.member]
        self.watch_release(self.seat(group, member), member)
        self.give(group, partitions)

    def give(self, group: Group, free: Collection[TopicPartition]) -> None:
        """Partitions are free: those who are to have them take their next step."""
        plan = self.plan(group.name)
        if plan is None:
            return
        for name in dict.fromkeys(plan.owners[each] for each in free if each in plan.owners):
            if name in group.members:
                self._step(group, plan, group.members[name])

    def watch_release(self, seat: Seat, member: Member) -> None:
        """A member has something to release, or has released all."""
        timeout = member.about.release_timeout if member.releasing else None
        self._sessions.release_by(seat, timeout)

    # What members are told ---

    def seat(self, group: Group, member: Member) -> Seat:
        """A member's seat."""
        seat = self._sessions.find(group.name, member.member)
        assert seat is not None, "every member has a seat"
        return seat

    def tell(self, token: Token, seat: Seat, group: Group, member: Member) -> None:
        """An answer with the assignment."""
        reply = reply_to(group, member)
        reply.assignment = by_topic(member.assigned, self.catalog)
        seat.told = seat.version
        self._outcome.answer(token, reply)

    def answer_held(self, seat: Seat, group: Group, member: Member) -> None:
        """Whoever waits gets an answer without news."""
        if seat.held is not None:
            self._outcome.answer(seat.held.token, reply_to(group, member))
            seat.held = None


def reply_to(group: Group, member: Member) -> GroupHeartbeatReply:
    """An answer without an assignment."""
    interval = min(HEARTBEAT_MS, member.about.session_timeout // 4)
    return GroupHeartbeatReply(
        member_epoch=member.epoch, group_epoch=group.epoch, heartbeat_interval=interval
    )


def joined_value(request: GroupHeartbeat) -> MemberValue:
    """The record of somebody new, who has nothing yet."""
    return subscribed(request, MemberValue(0, []))


def subscribed(request: GroupHeartbeat, about: MemberValue) -> MemberValue:
    """A member's record with what a heartbeat that has topics says of it."""
    return msgspec.structs.replace(
        about, topics=request.topics, client=request.client, assignor=request.assignor,
        rack=request.rack, session_timeout=request.session_timeout,
        release_timeout=request.release_timeout, instance=request.instance,
    )  # fmt: skip
