"""The coordinator of the groups of one partition of `__groups`: a request in; records and answers out.

Owns the decisions while this node leads that partition: who is in, and what is answered when. A decision's records are
applied as they are made, so that the next one sees them; the owner appends them, and answers once they are committed
(`outcome`). Nothing here waits, and nothing is undone: when the leadership or an append is lost, the owner throws the
coordinator away with its state, and builds both anew from the log.

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
the last member goes                        the group is empty from that moment on
=========================================== ==========================================================================
"""

from __future__ import annotations

import msgspec

from zbroker.errors import (
    GroupNotEmpty,
    InvalidRequest,
    MemberFenced,
    Overloaded,
    UnknownGroup,
)
from zbroker.groups import offsets, rebalance
from zbroker.groups.catalog import Catalog
from zbroker.groups.checks import check_heartbeat
from zbroker.groups.describe import describe, listing
from zbroker.groups.outcome import Outcome, Token
from zbroker.groups.records import GroupKey, GroupRecord, GroupValue
from zbroker.groups.sessions import Seat, Sessions
from zbroker.groups.state import Group, Member, State, TopicPartition
from zbroker.groups.targets import Run, Targets, reply_to, subscribed
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
)

MEMBERS_MAX = 5_000
"""Members of one group."""
MEMBERS_HERE_MAX = 50_000
"""Members of all groups of one partition of the internal topic."""
GROUPS_MAX = 10_000
"""Groups of one partition of the internal topic."""


class Coordinator:
    """See the module.

    Attributes:
        state: of the partition; nobody else changes it while this works on it.
        outcome: what was decided, for the owner to take after each call.
    """

    def __init__(self, state: State, catalog: Catalog, now: int) -> None:
        self.state = state
        self.outcome = Outcome(state)
        self.sessions = Sessions(now)
        self.targets = Targets(self.outcome, self.sessions, catalog)
        for group in state.groups.values():
            for name, member in group.members.items():
                seat = self.sessions.add(group.name, name, member.about.session_timeout)
                self.targets.watch_release(seat, member)
            if group.members:
                self.targets.ask(group.name)

    def everyone(self) -> list[Token]:
        """Whoever waits here for an answer; nobody does any more."""
        return [*self.targets.everyone(), *self.sessions.everyone()]

    # Heartbeats ---

    def heartbeat(self, token: Token, request: GroupHeartbeat, now: int, wall: int) -> None:
        """Takes a heartbeat, which is answered now or later.

        Raises:
            InvalidRequest, MemberFenced, Overloaded, and what the outcome's `refusal` is: with a sentence.
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
        self.targets.make()

    def _beat(self, token: Token, request: GroupHeartbeat, group: Group, member: Member) -> None:
        if request.member_epoch > member.epoch:
            raise _fenced(request.group, request.member)
        owned = _flat_owned(request)
        back = owned is not None and rebalance.released(member, owned, request.member_epoch)
        again = bool(request.topics) and subscribed(request, member.about) != member.about
        if back or again:
            self.outcome.must_write()
        seat = self.targets.seat(group, member)
        self.targets.answer_held(seat, group, member)
        if again:
            self.outcome.write_member(group, member.member, subscribed(request, member.about))
            self.targets.ask(group.name)
            member = group.members[request.member]
        self.sessions.hear(seat, member.about.session_timeout)
        if back:
            self.targets.release(group, member, back)
            member = group.members[request.member]
        if self._is_owed(seat, member, request.member_epoch, owned):
            self.targets.tell(token, seat, group, member)
        elif request.wait:
            wait = min(request.wait, member.about.session_timeout // 2)
            self.sessions.hold(seat, token, wait)
        else:
            self.outcome.answer(token, reply_to(group, member))

    def _is_owed(
        self, seat: Seat, member: Member, epoch: int, owned: frozenset[TopicPartition] | None
    ) -> bool:
        """Whether a member is to be told its assignment now: it was not, or seems not to have heard."""
        unheard = epoch < member.epoch or seat.told != seat.version
        if owned is not None and owned != seat.said:
            seat.said = owned
            holds = member.assigned.keys() | member.releasing.keys()
            return unheard or not member.assigned.keys() <= owned <= holds
        return unheard

    # Joining ---

    def _join(self, token: Token, request: GroupHeartbeat, group: Group | None) -> None:
        self.outcome.must_write()
        if not request.topics:
            raise InvalidRequest("a member joins with the topics that it subscribes to, found none")
        if request.instance is not None:
            self._replace_joining(request)
            former = None if group is None else group.instances.get(request.instance)
            if group is not None and former is not None:
                self._take_over(token, request, group, group.members[former])
                return
        self._check_room(request.group, group)
        self._replace_earlier(request)
        self.targets.run(request.group).joining[request.member] = (token, request)
        self.targets.ask(request.group)

    def _check_room(self, name: str, group: Group | None) -> None:
        run = self.targets.runs.get(name, Run())
        there = len(run.joining) + (0 if group is None else len(group.members))
        if there >= MEMBERS_MAX:
            raise Overloaded(f"group {name!r} has {there} members, and takes no more")
        if len(self.sessions) >= MEMBERS_HERE_MAX:
            raise Overloaded(f"{len(self.sessions)} members are coordinated here: no more are")
        if group is None and name not in self.targets.runs and self._groups_here() >= GROUPS_MAX:
            raise Overloaded(f"{self._groups_here()} groups are coordinated here: no more are")

    def _groups_here(self) -> int:
        return len(self.state.groups) + sum(
            name not in self.state.groups for name in self.targets.runs
        )

    def _replace_earlier(self, request: GroupHeartbeat) -> None:
        """Of two requests of one member that both ask to be in the later one counts."""
        run = self.targets.runs.get(request.group)
        earlier = None if run is None else run.joining.pop(request.member, None)
        if earlier is not None:
            self.outcome.answer(
                earlier[0],
                Overloaded(f"member {request.member!r} has sent another request since this one"),
            )

    def _replace_joining(self, request: GroupHeartbeat) -> None:
        """Of two that join under one instance the later one does."""
        run = self.targets.runs.get(request.group)
        if run is None:
            return
        for name, (token, other) in list(run.joining.items()):
            if other.instance == request.instance and name != request.member:
                del run.joining[name]
                self.outcome.answer(token, _fenced(request.group, name))

    def _take_over(
        self, token: Token, request: GroupHeartbeat, group: Group, former: Member
    ) -> None:
        """A static member is back under another id: it has what it had, but for what it was giving back."""
        self._replace_earlier(request)
        self._end_seat(group.name, former.member)
        free = list(former.releasing)
        about = subscribed(request, former.about)
        about = msgspec.structs.replace(about, epoch=max(group.epoch, former.epoch), releasing={})
        plan = self.targets.plan(group.name)
        if plan is not None and former.member in plan.wanted:
            wanted = plan.wanted[request.member] = plan.wanted.pop(former.member)
            plan.owners.update(dict.fromkeys(wanted, request.member))
        self.outcome.write_member(group, former.member, None)
        self.outcome.write_member(group, request.member, about)
        seat = self.sessions.add(group.name, request.member, about.session_timeout)
        before = former.about
        if (about.topics, about.assignor, about.rack) != (
            before.topics, before.assignor, before.rack,
        ):  # fmt: skip
            self.targets.ask(group.name)
        self.targets.tell(token, seat, group, group.members[request.member])
        self.targets.give(group, free)

    # Leaving ---

    def _leave(
        self,
        token: Token,
        request: GroupHeartbeat,
        group: Group | None,
        member: Member | None,
        wall: int,
    ) -> None:
        run = self.targets.runs.get(request.group)
        if run is not None and request.member in run.joining:
            earlier, _ = run.joining.pop(request.member)
            self.outcome.answer(earlier, _fenced(request.group, request.member))
        if group is not None and member is not None:
            self.outcome.must_write()
            if request.member_epoch == -2 and member.about.instance is not None:
                self._go_away(group, member)
            else:
                self._remove(group, member, wall)
        epoch = 0 if group is None else group.epoch
        self.outcome.answer(token, GroupHeartbeatReply(member_epoch=-1, group_epoch=epoch))

    def _go_away(self, group: Group, member: Member) -> None:
        """A static member restarts: it keeps its place for its session, and holds nothing that it was to release."""
        seat = self.targets.seat(group, member)
        self.targets.answer_held(seat, group, member)
        self.sessions.hear(seat, member.about.session_timeout)
        seat.away = True
        self.targets.release(group, member, list(member.releasing))

    def _remove(self, group: Group, member: Member, wall: int) -> None:
        """A member is out; what it held is free, and the last one leaves an empty group."""
        self._end_seat(group.name, member.member)
        free = [*member.assigned, *member.releasing]
        self.outcome.write_member(group, member.member, None)
        run = self.targets.run(group.name)
        if run.plan is not None:
            for partition in run.plan.wanted.pop(member.member, {}):
                if run.plan.owners.get(partition) == member.member:
                    del run.plan.owners[partition]
        if group.members or run.joining:
            self.targets.give(group, free)
            self.targets.ask(group.name)
        else:
            value = GroupValue(group.epoch + 1, group.assignor, empty_since=wall)
            self.outcome.write(GroupRecord(GroupKey(group.name), value))
            self.targets.forget(group.name)

    def _end_seat(self, group: str, member: str) -> None:
        seat = self.sessions.remove(group, member)
        if seat is not None and seat.held is not None:
            self.outcome.answer(seat.held.token, _fenced(group, member))
            seat.held = None

    # Positions and people ---

    def commit(self, token: Token, request: CommitOffsets, wall: int) -> None:
        """Commits positions. Raises as `offsets.commit` does."""
        self.outcome.must_write()
        group = self.state.groups.get(request.group)
        if group is None and len(self.state.groups) >= GROUPS_MAX:
            raise Overloaded(f"{len(self.state.groups)} groups are coordinated here: no more are")
        records, refused = offsets.commit(group, request, self.targets.catalog, wall)
        for record in records:
            self.outcome.write(record)
        self.outcome.answer(token, CommitOffsetsReply(refused=refused))

    def fetch_offsets(self, token: Token, request: FetchOffsets) -> None:
        """Answers with positions."""
        group = self.state.groups.get(request.group)
        found = offsets.fetch(group, request.partitions, self.targets.catalog)
        self.outcome.answer(token, FetchOffsetsReply(offsets=found))

    def describe(self, token: Token, request: DescribeGroup, now: int) -> None:
        """Answers with a group for people."""
        self.sessions.advance(now)
        run = self.targets.runs.get(request.group, Run())
        reply = describe(
            self._known(request.group), run.plan, self.sessions, self.targets.catalog,
            pending=run.due is not None, rebalances=run.rebalances,
        )  # fmt: skip
        self.outcome.answer(token, reply)

    def listings(self) -> list[GroupListing]:
        """The groups, for people."""
        targets = self.targets
        return [
            listing(group, targets.plan(name), pending=targets.is_due(name))
            for name, group in self.state.groups.items()
        ]

    def delete(self, token: Token, request: DeleteGroup) -> None:
        """Forgets a group without members."""
        group = self._known(request.group)
        run = self.targets.runs.get(request.group)
        if group.members or (run is not None and run.joining):
            raise GroupNotEmpty(
                f"group {request.group!r} has {len(group.members)} members; stop them first",
                members=len(group.members),
            )
        self.outcome.must_write()
        for record in offsets.forget_group(group):
            self.outcome.write(record)
        self.outcome.answer(token, DeleteGroupReply())

    def _known(self, name: str) -> Group:
        group = self.state.groups.get(name)
        if group is None:
            raise UnknownGroup(f"there is no group {name!r}")
        return group

    # Time ---

    def on_tick(self, now: int, wall: int) -> None:
        """About every 100 ms: who has waited long enough is answered, who was silent for too long is out."""
        self.sessions.advance(now)
        for seat in self.sessions.due_waits():
            group = self.state.groups[seat.group]
            self._answer_late(seat, group, group.members[seat.member])
        refusal = self.outcome.refusal
        if refusal is not None:
            for token in self.targets.everyone():
                self.outcome.answer(token, refusal)
            return
        for seat in self.sessions.ended():
            self._put_out(seat, "silent", wall)
        for seat in self.sessions.overdue_releases():
            self._put_out(seat, "did not release", wall)
        self.targets.make()

    def _put_out(self, seat: Seat, reason: str, wall: int) -> None:
        """A member is out that did not ask for it."""
        group = self.state.groups[seat.group]
        member = group.members[seat.member]
        self.outcome.tell(
            "group_member_out", group=group.name, member=member.member, reason=reason,
            client=member.about.instance or member.about.client or member.member,
        )  # fmt: skip
        self._remove(group, member, wall)

    def _answer_late(self, seat: Seat, group: Group, member: Member) -> None:
        """There was no news; a member that seems not to know its assignment is told it once more."""
        if seat.said is not None and not member.assigned.keys() <= seat.said:
            assert seat.held is not None
            token, seat.held = seat.held.token, None
            self.targets.tell(token, seat, group, member)
        else:
            self.targets.answer_held(seat, group, member)

    def expire(self, wall: int, retention: int) -> None:
        """Forgets what has expired."""
        if self.outcome.refusal is None:
            for records in offsets.expired(self.state, self.targets.catalog, wall, retention):
                for record in records:
                    self.outcome.write(record)


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
