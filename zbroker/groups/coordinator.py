"""The coordinator of the groups of one partition of `__groups`: a request in; records and answers out.

Owns the decisions while this node leads that partition: who is in, what the target is, what is answered and when. A
decision's records are applied as they are made, so that the next one sees them; the owner appends them, and answers
once they are committed (`take`). Nothing here waits, and nothing is undone: when the leadership or an append is lost,
the owner throws the coordinator away with its state, and builds both anew from the log.

Joins do not act by themselves: they wait, with everything else that asks for a new target, until one is due. Of one
group's targets each comes `COALESCE_MS` after the last at the soonest, and later where the group is large.

=========================================== ==========================================================================
on                                          effect
=========================================== ==========================================================================
heartbeat at epoch 0, nobody of that id     it waits for the next target, which it is answered with
the same, under a known instance            takes the place of the instance's former member, which is fenced
heartbeat of a member                       its session goes on; an earlier one that waits is answered
  ...that has not been told everything      answered with its assignment
  ...that says what it has released         that is free; who waits for it is given it
  ...that subscribes anew                   a new target is due
  ...that knows all there is                held until there is news, or its `wait` is over
heartbeat of nobody, or of a newer epoch    `member_fenced`
leave (-1)                                  the member is out; a new target is due
leave for a restart (-2)                    a static member's place is kept for its session, not what it was releasing
the session ends, or release takes too long the member is out; a new target is due
topics come, go or grow                     a new target is due, where subscriptions mean them
a new target                                each member takes its next step (`rebalance`); who has news is answered
the last member goes                        the group is empty from that moment on
=========================================== ==========================================================================
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import msgspec

from zbroker.errors import (
    GroupNotEmpty,
    InvalidRequest,
    MemberFenced,
    Overloaded,
    UnknownGroup,
    ZBrokerError,
)
from zbroker.groups import offsets, rebalance
from zbroker.groups.catalog import Catalog
from zbroker.groups.checks import check_group, check_heartbeat
from zbroker.groups.describe import by_topic, describe, listing
from zbroker.groups.rebalance import Plan
from zbroker.groups.records import (
    GroupKey,
    GroupRecord,
    GroupValue,
    MemberKey,
    MemberRecord,
    MemberValue,
    Record,
)
from zbroker.groups.sessions import Seat, Sessions
from zbroker.groups.state import Group, Member, State, TopicPartition
from zbroker.protocol.messages import (
    CommitOffsets,
    CommitOffsetsReply,
    DeleteGroup,
    DeleteGroupReply,
    DescribeGroup,
    FetchOffsets,
    FetchOffsetsReply,
    GroupHeartbeat,
    GroupHeartbeatReply,
    GroupListing,
    Reply,
)

COALESCE_MS = 50
"""How long one group's target stands at least."""
MEMBERS_A_MS = 4
"""And a ms longer for so many members."""
MEMBERS_MAX = 5_000
"""Members of one group."""
MEMBERS_HERE_MAX = 50_000
"""Members of all groups of one partition of the internal topic."""
GROUPS_MAX = 10_000
"""Groups of one partition of the internal topic."""
HEARTBEAT_MS = 2_500
"""How often a member is to be heard; sooner where its session is short."""

Token = Any
"""Whom to answer: the owner's own."""


class _Run(msgspec.Struct):
    """What is known of a group beside its records.

    Attributes:
        plan: the target; None where it is to be made.
        joining: requests of those who wait to be in, by member.
        due: when the next target is due, by the sessions' clock; None where the present one stands.
        not_before: when it may be at the soonest.
    """

    plan: Plan | None = None
    joining: dict[str, tuple[Token, GroupHeartbeat]] = {}
    due: int | None = None
    not_before: int = 0
    rebalances: int = 0


class Coordinator:
    """See the module.

    Attributes:
        state: of the partition; nobody else changes it while this works on it.
        refusal: why nothing can be appended for now; decisions that need records are refused with it.
        rebalances: targets made.
    """

    def __init__(self, state: State, catalog: Catalog, now: int) -> None:
        self.state = state
        self.catalog = catalog
        self.refusal: ZBrokerError | None = None
        self.rebalances = 0
        self.sessions = Sessions(now)
        self._records: list[Record] = []
        self._answers: list[tuple[Token, Reply | ZBrokerError]] = []
        self._runs: dict[str, _Run] = {}
        self._due: dict[str, None] = {}
        for group in state.groups.values():
            for name, member in group.members.items():
                seat = self.sessions.add(group.name, name, member.about.session_timeout)
                self._watch_release(seat, member)
            if group.members:
                self._ask_for_target(group.name)

    def take(self) -> tuple[list[Record], list[tuple[Token, Reply | ZBrokerError]]]:
        """What was decided since the last time: records, applied already, and answers that rest on them."""
        decided = self._records, self._answers
        self._records, self._answers = [], []
        return decided

    def everyone(self) -> list[Token]:
        """Whoever waits here for an answer; nobody does any more."""
        waiting: list[Token] = []
        for run in self._runs.values():
            waiting += [token for token, _ in run.joining.values()]
            run.joining = {}
        waiting += self.sessions.everyone()
        return waiting

    # Heartbeats ---

    def heartbeat(self, token: Token, request: GroupHeartbeat, now: int, wall: int) -> None:
        """Takes a heartbeat. It is answered in `take`, now or later.

        Raises:
            InvalidRequest, MemberFenced, Overloaded, and what `refusal` is: with a sentence.
        """
        self.sessions.advance(now)
        check_heartbeat(request)
        group = self.state.groups.get(request.group)
        member = None if group is None else group.members.get(request.member)
        if request.member_epoch < 0:
            self._leave(token, request, group, member, wall)
        elif member is not None and group is not None:
            self._beat(token, request, group, member)
        elif request.member_epoch == 0:
            self._join(token, request, group)
        else:
            raise _fenced(request.group, request.member)
        self._make_targets()

    def _beat(self, token: Token, request: GroupHeartbeat, group: Group, member: Member) -> None:
        if request.member_epoch > member.epoch:
            raise _fenced(request.group, request.member)
        owned = _flat_owned(request)
        news = owned is not None and rebalance.released(member, owned, request.member_epoch)
        again = bool(request.topics) and _subscription(request, member.about) != member.about
        if news or again:
            self._must_write()
        seat = self._seat(group, member)
        self._answer_held(seat, group, member)
        if again:
            self._write_member(group, member, _subscription(request, member.about))
            self._ask_for_target(group.name)
            member = group.members[request.member]
        self.sessions.hear(seat, member.about.session_timeout)
        if news:
            self._release(group, member, news)
            member = group.members[request.member]
        asks = request.member_epoch < member.epoch or seat.told != seat.version
        if owned is not None and owned != seat.said:
            seat.said = owned
            holds = member.assigned.keys() | member.releasing.keys()
            asks = asks or not member.assigned.keys() <= owned <= holds
        if asks:
            self._tell(token, seat, group, member)
        elif request.wait:
            wait = min(request.wait, member.about.session_timeout // 2)
            self.sessions.hold(seat, token, wait)
        else:
            self._answers.append((token, _reply(group, member)))

    def _seat(self, group: Group, member: Member) -> Seat:
        seat = self.sessions.find(group.name, member.member)
        assert seat is not None, "every member has a seat"
        return seat

    def _answer_held(self, seat: Seat, group: Group, member: Member) -> None:
        """Whoever waits gets an answer without news."""
        if seat.held is not None:
            self._answers.append((seat.held.token, _reply(group, member)))
            seat.held = None

    def _tell(self, token: Token, seat: Seat, group: Group, member: Member) -> None:
        """An answer with the assignment."""
        reply = _reply(group, member)
        reply.assignment = by_topic(member.assigned, self.catalog)
        seat.told = seat.version
        self._answers.append((token, reply))

    # Joining and leaving ---

    def _join(self, token: Token, request: GroupHeartbeat, group: Group | None) -> None:
        self._must_write()
        if not request.topics:
            raise InvalidRequest("a member joins with the topics that it subscribes to, found none")
        run = self._run(request.group)
        there = len(run.joining) + (0 if group is None else len(group.members))
        former = None
        if request.instance is not None:
            self._replace_joining(run, request)
            if group is not None and request.instance in group.instances:
                former = group.members[group.instances[request.instance]]
        if former is not None and group is not None:
            self._take_over(token, request, group, former)
            return
        if len(self.sessions) >= MEMBERS_HERE_MAX:
            raise Overloaded(f"{len(self.sessions)} members are coordinated here: no more are")
        if there >= MEMBERS_MAX:
            raise Overloaded(f"group {request.group!r} has {there} members, and takes no more")
        if group is None and len(self.state.groups) >= GROUPS_MAX:
            raise Overloaded(f"{len(self.state.groups)} groups are coordinated here: no more are")
        earlier = run.joining.pop(request.member, None)
        if earlier is not None:
            self._answers.append((earlier[0], _superseded(request.member)))
        run.joining[request.member] = (token, request)
        self._ask_for_target(request.group)

    def _refuse_joining(self, error: ZBrokerError) -> None:
        """Nobody gets in for now: they are told, and try again."""
        for name in self._due:
            run = self._runs[name]
            self._answers += [(token, error) for token, _ in run.joining.values()]
            run.joining = {}

    def _replace_joining(self, run: _Run, request: GroupHeartbeat) -> None:
        """Of two that join under one instance the later one does."""
        for name, (token, other) in list(run.joining.items()):
            if other.instance == request.instance and name != request.member:
                del run.joining[name]
                self._answers.append((token, _fenced(request.group, name)))

    def _take_over(
        self, token: Token, request: GroupHeartbeat, group: Group, former: Member
    ) -> None:
        """A static member is back under another id: it has what it had, but for what it was giving back."""
        run = self._run(group.name)
        self._end_seat(group.name, former.member)
        free = list(former.releasing)
        about = _subscription(request, former.about)
        about = msgspec.structs.replace(about, epoch=max(group.epoch, former.epoch), releasing={})
        if run.plan is not None and former.member in run.plan.wanted:
            wanted = run.plan.wanted[request.member] = run.plan.wanted.pop(former.member)
            run.plan.owners.update(dict.fromkeys(wanted, request.member))
        self._write(MemberRecord(MemberKey(group.name, former.member), None))
        self._write(MemberRecord(MemberKey(group.name, request.member), about))
        seat = self.sessions.add(group.name, request.member, about.session_timeout)
        member = group.members[request.member]
        if (about.topics, about.assignor, about.rack) != (
            former.about.topics, former.about.assignor, former.about.rack,
        ):  # fmt: skip
            self._ask_for_target(group.name)
        self._tell(token, seat, group, member)
        self._give(group, free)

    def _leave(
        self,
        token: Token,
        request: GroupHeartbeat,
        group: Group | None,
        member: Member | None,
        wall: int,
    ) -> None:
        run = self._runs.get(request.group)
        if run is not None and request.member in run.joining:
            earlier, _ = run.joining.pop(request.member)
            self._answers.append((earlier, _fenced(request.group, request.member)))
        if group is not None and member is not None:
            self._must_write()
            if request.member_epoch == -2 and member.about.instance is not None:
                self._go_away(group, member)
            else:
                self._remove(group, member, wall)
        epoch = 0 if group is None else group.epoch
        self._answers.append((token, GroupHeartbeatReply(member_epoch=-1, group_epoch=epoch)))

    def _go_away(self, group: Group, member: Member) -> None:
        """A static member restarts: it keeps its place for its session, and holds nothing that it was to release."""
        seat = self._seat(group, member)
        self._answer_held(seat, group, member)
        self.sessions.hear(seat, member.about.session_timeout)
        seat.away = True
        self._release(group, member, list(member.releasing))

    def _remove(self, group: Group, member: Member, wall: int) -> None:
        """A member is out; what it held is free, and the last one leaves an empty group."""
        self._end_seat(group.name, member.member)
        free = [*member.assigned, *member.releasing]
        name = group.name
        self._write(MemberRecord(MemberKey(name, member.member), None))
        run = self._run(name)
        if run.plan is not None:
            for partition in run.plan.wanted.pop(member.member, {}):
                if run.plan.owners.get(partition) == member.member:
                    del run.plan.owners[partition]
        if group.members or run.joining:
            self._give(group, free)
            self._ask_for_target(name)
        else:
            value = GroupValue(group.epoch + 1, group.assignor, empty_since=wall)
            self._write(GroupRecord(GroupKey(name), value))
            self._runs.pop(name, None)
            self._due.pop(name, None)

    def _end_seat(self, group: str, member: str) -> None:
        seat = self.sessions.remove(group, member)
        if seat is not None and seat.held is not None:
            self._answers.append((seat.held.token, _fenced(group, member)))
            seat.held = None

    # Targets ---

    def _run(self, group: str) -> _Run:
        return self._runs.setdefault(group, _Run())

    def _ask_for_target(self, group: str) -> None:
        """A new target is due, at once or a while after the last one."""
        run = self._run(group)
        if run.due is None:
            run.due = max(self.sessions.clock, run.not_before)
            self._due[group] = None

    def _make_targets(self) -> None:
        """Makes the targets that are due."""
        if self.refusal is not None:
            return
        for name in list(self._due):
            run = self._runs[name]
            if run.due is not None and run.due <= self.sessions.clock:
                del self._due[name]
                run.due = None
                self._make_target(name, run)

    def _make_target(self, name: str, run: _Run) -> None:
        group = self.state.groups.get(name)
        joining, run.joining = run.joining, {}
        joined = {member: _joined(request) for member, (_, request) in joining.items()}
        known = {} if group is None else group.members
        abouts = {**{each: member.about for each, member in known.items()}, **joined}
        run.not_before = self.sessions.clock + COALESCE_MS + len(abouts) // MEMBERS_A_MS
        if not abouts:
            self._runs.pop(name, None)
            return
        first = run.plan is None
        run.plan = plan = rebalance.make_plan(group, abouts, run.plan, self.catalog)
        if first and not joining and group is not None and rebalance.is_reached(group, plan):
            return  # nothing happened but that another node took over
        run.rebalances += 1
        self.rebalances += 1
        epoch = 1 if group is None else group.epoch + 1
        self._write(GroupRecord(GroupKey(name), GroupValue(epoch, plan.assignor)))
        group = self.state.groups[name]
        for member in list(group.members.values()):
            self._step(group, plan, member)
        for member_id, (token, _) in joining.items():
            about = msgspec.structs.replace(joined[member_id], epoch=epoch)
            empty = Member(member_id, about, {}, {})
            value = rebalance.next_step(group, plan, empty) or about
            self._write(MemberRecord(MemberKey(name, member_id), value))
            seat = self.sessions.add(name, member_id, about.session_timeout)
            self._tell(token, seat, group, group.members[member_id])

    def _step(self, group: Group, plan: Plan, member: Member) -> None:
        """A member's next step, where there is one; it is told at once if it waits."""
        value = rebalance.next_step(group, plan, member)
        if value is None:
            return
        self._write(MemberRecord(MemberKey(group.name, member.member), value))
        member = group.members[member.member]
        seat = self._seat(group, member)
        self._watch_release(seat, member)
        seat.version += 1
        if seat.held is not None:
            token, seat.held = seat.held.token, None
            self._tell(token, seat, group, member)

    def _release(
        self, group: Group, member: Member, partitions: Collection[TopicPartition]
    ) -> None:
        """A member has given partitions back: whoever is to have them gets them."""
        if not partitions:
            return
        self._write_member(group, member, rebalance.without(member, partitions))
        member = group.members[member.member]
        self._watch_release(self._seat(group, member), member)
        self._give(group, partitions)

    def _give(self, group: Group, free: Collection[TopicPartition]) -> None:
        run = self._run(group.name)
        if run.plan is None:
            return
        owners = dict.fromkeys(run.plan.owners[each] for each in free if each in run.plan.owners)
        for name in owners:
            if name in group.members:
                self._step(group, run.plan, group.members[name])

    def _watch_release(self, seat: Seat, member: Member) -> None:
        timeout = member.about.release_timeout if member.releasing else None
        self.sessions.release_by(seat, timeout)

    # Positions and people ---

    def commit(self, token: Token, request: CommitOffsets, now: int, wall: int) -> None:
        """Commits positions. Raises as `offsets.commit` does."""
        self.sessions.advance(now)
        check_group(request.group)
        self._must_write()
        group = self.state.groups.get(request.group)
        if group is None and len(self.state.groups) >= GROUPS_MAX:
            raise Overloaded(f"{len(self.state.groups)} groups are coordinated here: no more are")
        records, refused = offsets.commit(group, request, self.catalog, wall)
        for record in records:
            self._write(record)
        self._answers.append((token, CommitOffsetsReply(refused=refused)))

    def fetch_offsets(self, token: Token, request: FetchOffsets) -> None:
        """Answers with positions."""
        check_group(request.group)
        group = self.state.groups.get(request.group)
        found = offsets.fetch(group, request.partitions, self.catalog)
        self._answers.append((token, FetchOffsetsReply(offsets=found)))

    def describe(self, token: Token, request: DescribeGroup, now: int) -> None:
        """Answers with a group for people."""
        self.sessions.advance(now)
        run = self._runs.get(request.group, _Run())
        reply = describe(
            self._known(request.group), run.plan, self.sessions, self.catalog,
            pending=run.due is not None, rebalances=run.rebalances,
        )  # fmt: skip
        self._answers.append((token, reply))

    def listings(self) -> list[GroupListing]:
        """The groups, for people."""
        return [
            listing(
                group,
                self._runs.get(group.name, _Run()).plan,
                pending=self._runs.get(group.name, _Run()).due is not None,
            )
            for group in self.state.groups.values()
        ]

    def delete(self, token: Token, request: DeleteGroup) -> None:
        """Forgets a group without members."""
        group = self._known(request.group)
        run = self._runs.get(request.group)
        if group.members or (run is not None and run.joining):
            raise GroupNotEmpty(
                f"group {request.group!r} has {len(group.members)} members; stop them first",
                members=len(group.members),
            )
        self._must_write()
        for record in offsets.forget_group(group):
            self._write(record)
        self._answers.append((token, DeleteGroupReply()))

    def _known(self, name: str) -> Group:
        check_group(name)
        group = self.state.groups.get(name)
        if group is None:
            raise UnknownGroup(f"there is no group {name!r}")
        return group

    # Topics and time ---

    def set_catalog(self, catalog: Catalog) -> None:
        """The topics changed: groups whose subscriptions mean other partitions by now get new targets."""
        self.catalog = catalog
        for name, run in self._runs.items():
            group = self.state.groups.get(name)
            if group is None or run.plan is None or run.due is not None:
                continue
            abouts = {each: member.about for each, member in group.members.items()}
            if rebalance.topics_meant(abouts, catalog) != run.plan.topics:
                self._ask_for_target(name)

    def on_tick(self, now: int, wall: int) -> None:
        """About every 100 ms: who has waited long enough is answered, who was silent for too long is out."""
        self.sessions.advance(now)
        for seat in self.sessions.due_waits():
            group = self.state.groups[seat.group]
            self._answer_late(seat, group, group.members[seat.member])
        if self.refusal is not None:
            self._refuse_joining(self.refusal)
            return
        for seat in (*self.sessions.ended(), *self.sessions.overdue_releases()):
            group = self.state.groups[seat.group]
            if not seat.gone:
                self._remove(group, group.members[seat.member], wall)
        self._make_targets()

    def _answer_late(self, seat: Seat, group: Group, member: Member) -> None:
        """There was no news; a member that seems not to know its assignment is told it once more."""
        if seat.said is not None and not member.assigned.keys() <= seat.said:
            assert seat.held is not None
            token, seat.held = seat.held.token, None
            self._tell(token, seat, group, member)
        else:
            self._answer_held(seat, group, member)

    def expire(self, wall: int, retention: int) -> None:
        """Forgets what has expired."""
        if self.refusal is not None:
            return
        for records in offsets.expired(self.state, self.catalog, wall, retention):
            for record in records:
                self._write(record)

    # Within ---

    def _must_write(self) -> None:
        if self.refusal is not None:
            raise self.refusal

    def _write(self, record: Record) -> None:
        self._records.append(record)
        self.state.apply(record)

    def _write_member(self, group: Group, member: Member, value: MemberValue) -> None:
        self._write(MemberRecord(MemberKey(group.name, member.member), value))


def _reply(group: Group, member: Member) -> GroupHeartbeatReply:
    interval = min(HEARTBEAT_MS, member.about.session_timeout // 4)
    return GroupHeartbeatReply(
        member_epoch=member.epoch, group_epoch=group.epoch, heartbeat_interval=interval
    )


def _joined(request: GroupHeartbeat) -> MemberValue:
    """The record of somebody new, who has nothing yet."""
    return _subscription(request, MemberValue(0, []))


def _subscription(request: GroupHeartbeat, about: MemberValue) -> MemberValue:
    """A member's record with what a heartbeat that has topics says of it."""
    return msgspec.structs.replace(
        about, topics=request.topics, client=request.client, assignor=request.assignor,
        rack=request.rack, session_timeout=request.session_timeout,
        release_timeout=request.release_timeout, instance=request.instance,
    )  # fmt: skip


def _flat_owned(request: GroupHeartbeat) -> frozenset[TopicPartition] | None:
    if request.owned is None:
        return None
    return frozenset(
        (each.topic_id, number) for each in request.owned for number in each.partitions
    )


def _fenced(group: str, member: str) -> MemberFenced:
    return MemberFenced(
        f"member {member!r} is not in group {group!r}, or not any more: its session ended, or another took its name; "
        "it joins again under another id"
    )


def _superseded(member: str) -> ZBrokerError:
    return Overloaded(f"member {member!r} has sent another request since this one")
