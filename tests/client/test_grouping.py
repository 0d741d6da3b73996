"""A member's cores against a coordinator whose every answer is written down: each transition, and what comes late."""

from __future__ import annotations

from typing import Any

import pytest
from client.group_world import HERE, THERE, Member, place, said_owned, topic_id

from zbroker.client.committing import Commit, Position
from zbroker.errors import (
    InvalidRequest,
    MemberFenced,
    NotCoordinator,
    NotOwned,
    NotReady,
    RequestTimedOut,
    StaleMemberEpoch,
    UnknownGroup,
    ZBrokerError,
)
from zbroker.protocol.messages import (
    CommitOffsets,
    CommitOffsetsReply,
    Fetch,
    FetchOffsets,
    FetchOffsetsReply,
    FindCoordinator,
    GroupHeartbeat,
    GroupHeartbeatReply,
    GroupOffset,
    Offsets,
    OffsetsReply,
    TopicPartitions,
)


def committing(member: Member, **positions: int) -> list[ZBrokerError | None]:
    """The application commits; the list gets what it is answered."""
    answers: list[ZBrokerError | None] = []
    found = {place(int(name[1:])): Position(offset) for name, offset in positions.items()}
    member.group.commit(Commit(found, answers.append, member.now + 10))
    member.step()
    return answers


# Joining ---


def test_a_member_joins_and_reads_from_the_committed_offset_or_its_start() -> None:
    member = Member()
    member.group.join(member.now)
    member.step()
    member.metadata()
    member.found()
    first = member.beat(1, 0, 1)
    assert (first.member, first.member_epoch, first.topics, said_owned(first)) == (
        "m1", 0, ["t"], set(),
    )  # fmt: skip
    assert member.owned == {0, 1}
    assert member.reads == set()  # not before it is known where from
    asked = member.offsets({0: 7})
    assert asked.group == "g"
    assert member.reads == {0, 1}
    assert member.core.readers[place(0)].splice.position == 7
    assert member.asked(Offsets).at == "earliest"
    # That the assignment came is told by what is owned; topics are not said again.
    second = member.asked(GroupHeartbeat)
    assert (second.member_epoch, second.topics, said_owned(second)) == (1, [], {0, 1})
    assert second.wait == 2500


def test_nothing_is_read_before_the_application_calls() -> None:
    member = Member()
    member.step()
    assert not member.pending(FindCoordinator)
    assert not member.pending(GroupHeartbeat)


def test_an_answered_heartbeat_is_followed_by_the_next_and_nothing_is_said_again() -> None:
    member = Member()
    member.joined(0)
    member.step(2.5)
    member.beat(1, news=False)
    following = member.asked(GroupHeartbeat)
    assert (following.member_epoch, said_owned(following)) == (1, None)


def test_a_coordinator_that_does_not_hold_is_not_flooded() -> None:
    member = Member()
    member.joined(0)
    beats = 0
    for _ in range(1000):
        member.step(0.01)
        while member.pending(GroupHeartbeat):
            member.beat(1, news=False)
            beats += 1
    assert beats < 20  # in ten seconds


def test_where_a_partition_begins_without_an_offset_is_committed_at_once() -> None:
    member = Member(start="latest")
    member.group.join(member.now)
    member.step()
    member.metadata()
    member.found()
    member.beat(1, 0)
    member.offsets()
    member.answer(Offsets, OffsetsReply(offset=40, epoch=1, high_watermark=40))
    member.step()
    assert member.commit_answered() == {0: 40}


def test_partitions_and_topics_that_appear_later_begin_at_their_first_record() -> None:
    member = Member(start="latest")
    member.joined(0)
    member.cluster.refresh(member.now)
    member.metadata(partitions=8)
    member.beat(2, 0, 7)
    member.offsets()
    assert member.asked(Offsets).at == "earliest"


# Changes ---


def test_a_revoked_partition_of_which_nothing_is_in_hand_is_released_by_the_thread_alone() -> None:
    member = Member()
    member.joined(0, 1)
    member.beat(2, 0)
    assert member.reads == {0}
    assert member.owned == {0}
    beats = member.pending(GroupHeartbeat)
    assert [said_owned(call.message) for call in beats] == [{0}]  # type: ignore[arg-type]
    assert not member.custody.events


def test_a_held_heartbeat_does_not_hold_up_a_release() -> None:
    member = Member()
    member.joined(0, 1)
    assert member.take(1)
    member.beat(2, 0)
    held = member.asked(GroupHeartbeat)
    assert said_owned(held) == {0, 1}  # still held: some of it is in hand
    member.call({1: 9})
    assert member.commit_answered() == {1: 9}
    first, second = member.pending(GroupHeartbeat)
    assert first.message is held
    assert said_owned(second.message) == {0}  # type: ignore[arg-type]


def test_a_revoked_partition_is_not_read_while_what_is_in_hand_is_finished() -> None:
    member = Member()
    member.joined(0, 1)
    assert member.take(1)
    member.beat(2, 0)
    assert member.reads == {0}
    assert not member.take(1)
    assert member.take(0)
    member.step(2)
    assert said_owned(member.asked(GroupHeartbeat)) == {0, 1}


def test_partitions_that_stay_are_not_touched_by_what_comes_and_goes() -> None:
    member = Member()
    member.joined(0, 1)
    reader = member.core.readers[place(0)]
    fetching, generation = reader.call, member.custody.owned[place(0)]
    member.beat(2, 0)
    member.beat(3, 0, 2)
    member.offsets({2: 5})
    assert member.reads == {0, 2}
    assert member.core.readers[place(0)] is reader
    assert fetching is not None
    assert reader.call is fetching
    assert member.custody.owned[place(0)] == generation


def test_an_application_that_wants_to_hear_is_heard_first() -> None:
    member = Member(hears=True)
    member.joined(0, 1)
    member.call()
    member.beat(2, 0)
    assert said_owned(member.asked(GroupHeartbeat)) == {0, 1}
    assert [event.kind for event in member.custody.events] == ["revoked"]
    member.call()
    assert said_owned(member.pending(GroupHeartbeat)[-1].message) == {0}  # type: ignore[arg-type]


def test_what_was_assigned_and_revoked_unheard_is_never_heard_of() -> None:
    member = Member(hears=True)
    member.joined(0, 1)
    member.beat(2, 0)
    kinds = [(event.kind, event.places) for event in member.custody.events]
    assert kinds == [("assigned", [place(0)])]
    assert said_owned(member.asked(GroupHeartbeat)) == {0}


def test_an_answer_to_what_was_sent_before_a_release_does_not_give_it_back() -> None:
    member = Member()
    member.joined(0, 1)
    assert member.take(1)
    member.beat(2, 0)
    member.call()
    # The held one is answered, with the assignment of before the release was heard of.
    member.beat(3, 0, 1, which=0)
    assert member.owned == {0}
    # The answer to the release gives it again.
    member.beat(4, 0, 1, which=0)
    assert member.owned == {0, 1}
    assert member.pending(FetchOffsets)


def test_a_partition_that_comes_back_while_it_is_being_released_is_released_all_the_same() -> None:
    member = Member()
    member.joined(0, 1)
    assert member.take(1)
    member.beat(2, 0)
    member.beat(3, 0, 1)
    assert member.owned == {0}
    member.call()
    released = member.pending(GroupHeartbeat)[-1]
    assert said_owned(released.message) == {0}  # type: ignore[arg-type]
    member.beat(3, news=False, which=0)
    member.beat(3, news=False)  # as said before
    assert member.owned == {0, 1}


def test_offsets_that_were_asked_for_before_a_partition_went_are_not_used_when_it_comes_back() -> (
    None
):
    member = Member()
    member.joined(0)
    member.beat(2, 0, 1)
    (late,) = member.pending(FetchOffsets)
    member.beat(3, 0)
    member.beat(4, 0, 1)
    first, second = member.pending(FetchOffsets)
    assert first is late
    for call, offset in ((first, 3), (second, 8)):
        found = GroupOffset(topic_id=topic_id(), topic="t", partition=1, offset=offset, epoch=1)
        member.reply(call, FetchOffsetsReply(offsets=[found]))
    assert member.core.readers[place(1)].splice.position == 8


def test_a_topic_made_again_under_its_name_is_another_one() -> None:
    member = Member()
    member.joined(0)
    other = GroupHeartbeatReply(member_epoch=2, group_epoch=2, assignment=[])
    other.assignment = [TopicPartitions(topic_id="f" * 32, topic="t", partitions=[0])]
    member.answer(GroupHeartbeat, other)
    assert member.reads == set()
    release = member.pending(GroupHeartbeat)[-1]
    assert said_owned(release.message) == set()  # type: ignore[arg-type]
    member.beat(2, news=False)
    assert member.group.membership.held == {place(0): "f" * 32}


def test_an_older_answer_changes_nothing() -> None:
    member = Member()
    member.joined(0)
    member.beat(5, 0, 1)
    member.beat(4, 0)
    assert member.owned == {0, 1}


def test_a_late_answer_to_an_abandoned_heartbeat_is_dropped() -> None:
    member = Member()
    member.joined(0)
    (late,) = member.pending(GroupHeartbeat)
    member.lose()
    member.reply(late, GroupHeartbeatReply(member_epoch=9, group_epoch=9, assignment=[]))
    assert member.owned == {0}


# The coordinator goes ---


@pytest.mark.parametrize("error", [
    NotCoordinator("not me", leader="n2"), NotReady("starting"), RequestTimedOut("slow"),
])  # fmt: skip
def test_a_coordinator_that_is_none_is_looked_for_and_the_application_hears_nothing(
    error: ZBrokerError,
) -> None:
    member = Member()
    member.joined(0)
    member.answer(GroupHeartbeat, error)
    if not isinstance(error, NotCoordinator):  # which names the other one
        member.step(0.1)
        member.found("n2")
    (call,) = member.pending(GroupHeartbeat)
    assert call.address == THERE
    assert said_owned(call.message) == {0}  # type: ignore[arg-type]
    assert call.message.member == "m1"  # type: ignore[attr-defined]
    assert member.custody.error is None
    assert member.take(0)


def test_attempts_at_a_coordinator_that_keeps_refusing_come_ever_less_often() -> None:
    member = Member()
    member.joined(0)
    beats = 0
    for _ in range(2000):
        member.step(0.005)
        if member.pending(FindCoordinator):
            member.found()
        while member.pending(GroupHeartbeat):
            member.answer(GroupHeartbeat, NotReady("still starting"))
            beats += 1
    assert 5 < beats < 60  # in ten seconds


def test_a_coordinator_whose_node_is_reported_dead_is_not_waited_for() -> None:
    member = Member()
    member.joined(0)
    (held,) = member.pending(GroupHeartbeat)
    member.cluster.refresh(member.now)
    member.metadata(dead="n1")
    member.found("n2")
    (call,) = member.pending(GroupHeartbeat)
    assert call.address == THERE
    assert call is not held


def test_a_heartbeat_that_is_not_answered_in_time_is_sent_again() -> None:
    member = Member()
    member.joined(0)
    member.step(5.1)
    member.step(0.1)
    member.found()
    assert said_owned(member.asked(GroupHeartbeat)) == {0}


def test_a_group_that_no_node_coordinates_for_good_is_told() -> None:
    member = Member()
    member.group.join(member.now)
    member.step()
    member.metadata()
    member.answer(FindCoordinator, InvalidRequest("no such name"))
    assert isinstance(member.custody.error, InvalidRequest)
    assert member.group.membership.state == "away"


# The session ---


def test_the_session_is_counted_from_when_the_answered_heartbeat_was_sent() -> None:
    member = Member()
    member.joined(0)
    sent = member.now
    member.step(2.5)
    member.beat(1, news=False)
    assert member.custody.fence_at == sent + 10.0


def test_nothing_is_handed_out_once_the_session_may_be_over() -> None:
    member = Member()
    member.joined(0)
    (held,) = member.pending(GroupHeartbeat)
    member.now += 10.1  # frozen: nothing ran in between
    assert not member.take(0)
    # An answer that came while it was frozen is of no use: what was sent then is too long ago.
    member.reply(held, GroupHeartbeatReply(member_epoch=1, group_epoch=1))
    assert not member.take(0)
    assert member.custody.error is None
    member.answer(GroupHeartbeat, MemberFenced("you are out"))
    assert isinstance(member.custody.error, MemberFenced)
    assert member.custody.error.details["reason"] == "session"
    assert member.reads == member.owned == set()


def test_an_iteration_is_interrupted_when_the_session_may_be_over_or_a_partition_goes() -> None:
    member = Member()
    member.joined(0, 1)
    assert member.take(1)
    member.call()
    assert not member.custody.interrupted
    assert member.take(1)
    member.beat(2, 0)
    assert member.custody.interrupted
    member.call()
    assert not member.custody.interrupted
    member.lose()
    while member.now < member.custody.fence_at:
        assert member.wanted is not None
        assert member.wanted <= member.custody.fence_at  # the thread does not sleep through it
        member.step(1)
    assert member.custody.interrupted


def test_a_coordinator_that_was_away_itself_may_say_that_the_member_is_still_in() -> None:
    member = Member()
    member.joined(0)
    member.lose()
    member.step(11)
    assert not member.take(0)
    member.found()
    member.group.has_news()
    member.beat(1, 0)
    assert member.take(0)
    assert member.group.has_news()  # who waits for what was held back is woken
    assert member.custody.error is None


def test_a_member_that_is_out_joins_under_another_id_once_the_application_knows() -> None:
    member = Member()
    member.joined(0)
    member.answer(GroupHeartbeat, MemberFenced("you are out"))
    member.step(5)
    assert not member.pending(GroupHeartbeat)
    member.custody.error = None
    member.group.join(member.now)
    member.step()
    again = member.asked(GroupHeartbeat)
    assert (again.member, again.member_epoch, said_owned(again)) == ("m2", 0, set())


def test_a_static_member_that_was_replaced_stays_out() -> None:
    member = Member(instance="i1")
    member.joined(0)
    member.answer(GroupHeartbeat, MemberFenced("another took its name"))
    assert member.custody.final
    assert member.custody.error is not None
    assert member.custody.error.details["reason"] == "replaced"


def test_a_static_member_whose_session_ended_joins_again() -> None:
    member = Member(instance="i1")
    member.joined(0)
    member.step(11)
    member.step(0.2)
    member.found()
    member.answer(GroupHeartbeat, MemberFenced("you are out"))
    assert not member.custody.final


def test_a_stale_epoch_is_asked_again_and_then_taken_for_the_end() -> None:
    member = Member()
    member.joined(0)
    member.answer(GroupHeartbeat, StaleMemberEpoch("stale"))
    assert said_owned(member.asked(GroupHeartbeat)) == {0}
    member.answer(GroupHeartbeat, StaleMemberEpoch("stale"))
    member.answer(GroupHeartbeat, StaleMemberEpoch("stale"))
    assert isinstance(member.custody.error, MemberFenced)


# The application that makes no call ---


def test_a_stuck_application_is_taken_out_and_told() -> None:
    member = Member(max_poll_interval=30.0)
    member.joined(0)
    assert member.take(0)
    member.call({0: 8})
    assert member.take(0)
    member.custody.idle_since = member.now
    for _ in range(31):
        member.step(1)
        while member.pending(CommitOffsets):
            member.commit_answered()
        while member.pending(GroupHeartbeat) and member.group.membership.state == "member":
            member.beat(1, news=False)
    leaving = member.asked(GroupHeartbeat)
    assert leaving.member_epoch == -1
    assert isinstance(member.custody.error, MemberFenced)
    assert member.custody.error.details["reason"] == "max_poll_interval"
    assert not member.take(0)


def test_an_application_that_calls_before_the_stuck_member_has_left_joins_afterwards() -> None:
    member = Member(max_poll_interval=1.0, auto_commit=False)
    member.joined(0)
    member.custody.idle_since = member.now
    member.step(1.1)
    assert member.asked(GroupHeartbeat).member_epoch == -1
    member.custody.idle_since = None
    member.group.join(member.now)
    member.step()
    assert len(member.pending(GroupHeartbeat)) == 1
    member.answer(GroupHeartbeat, GroupHeartbeatReply(member_epoch=-1))
    again = member.asked(GroupHeartbeat)
    assert (again.member, again.member_epoch) == ("m2", 0)


def test_what_is_assigned_while_a_member_gives_all_up_is_not_taken() -> None:
    """Its next membership may not have it, and would hand it out all the same."""
    member = Member(max_poll_interval=1.0)
    member.joined(0)
    assert member.take(0)
    member.call({0: 8})
    member.custody.idle_since = member.now
    member.step(1.1)
    assert member.pending(CommitOffsets)  # which is waited for before it says that it leaves
    member.beat(2, 0, 1)
    assert member.owned == set()
    assert not member.take(1)
    member.commit_answered()
    member.custody.idle_since = None
    member.group.join(member.now)
    member.answer(GroupHeartbeat, GroupHeartbeatReply(member_epoch=-1), which=-1)
    member.beat(3, 0)
    member.offsets({0: 8})
    assert member.owned == {0}
    assert member.reads == {0}
    assert not member.take(1)


def test_what_is_revoked_while_a_member_gives_all_up_is_not_released_before_its_last_commit() -> (
    None
):
    """Whoever had it then would begin before what is done, and the last commit would be refused."""
    member = Member()
    member.joined(0, 1)
    assert member.take(1)
    committing(member, p0=6)
    member.call({1: 9})
    member.group.close(lambda: None, keep=False, deadline=member.now + 3)
    member.beat(2, 0)
    assert said_owned(member.pending(GroupHeartbeat)[-1].message) == {0, 1}  # type: ignore[arg-type]
    assert member.commit_answered() == {0: 6}
    assert member.commit_answered() == {1: 9}
    assert member.asked(GroupHeartbeat).member_epoch == -1


def test_what_is_finished_while_a_stuck_member_gives_all_up_is_not_released_either() -> None:
    member = Member(hears=True, max_poll_interval=1.0)
    member.joined(0, 1)
    member.call()
    assert member.take(1)
    member.beat(2, 0)
    member.custody.call({place(1): Position(9, 1)}, None)
    revoked = member.custody.next_event()
    assert revoked is not None
    committing(member, p0=6)
    member.custody.idle_since = member.now
    member.step(1.1)
    member.custody.finish(revoked.places)
    member.group.on_finished(revoked.places)
    member.step()
    assert said_owned(member.pending(GroupHeartbeat)[-1].message) == {0, 1}  # type: ignore[arg-type]
    assert member.commit_answered() == {0: 6}
    assert member.commit_answered() == {1: 9}
    assert member.asked(GroupHeartbeat).member_epoch == -1


def test_an_application_that_heard_that_all_is_lost_does_not_hear_of_a_revocation_after_that() -> (
    None
):
    member = Member(hears=True, max_poll_interval=1.0)
    member.joined(0, 1)
    member.call({0: 8})
    member.custody.idle_since = member.now
    member.step(1.1)
    member.beat(2, 0)
    assert [event.kind for event in member.custody.events] == ["lost"]


def test_an_application_in_a_call_is_not_stuck() -> None:
    member = Member(max_poll_interval=1.0)
    member.joined(0)
    for _ in range(3):
        member.step(2.4)
        member.beat(1, news=False)
    assert member.custody.error is None


# Commits ---


def test_what_is_done_is_committed_now_and_then_and_what_is_in_hand_is_not() -> None:
    member = Member()
    member.joined(0)
    assert member.take(0)
    member.step(1.1)
    assert not member.pending(CommitOffsets)
    member.call({0: 9})
    assert member.take(0)  # another batch, in hand
    member.step(1.1)
    sent = member.asked(CommitOffsets)
    assert (sent.member, sent.member_epoch) == ("m1", 1)
    assert member.commit_answered() == {0: 9}
    member.step(1.1)
    assert not member.pending(CommitOffsets)  # nothing new


def test_without_automatic_commits_nothing_is_committed_by_itself() -> None:
    member = Member(auto_commit=False)
    member.joined(0, 1)
    assert member.take(1)
    member.call({1: 9})
    member.step(2)
    member.beat(2, 0)
    assert not member.pending(CommitOffsets)
    assert said_owned(member.pending(GroupHeartbeat)[-1].message) == {0}  # type: ignore[arg-type]


def test_a_release_waits_for_its_commit_through_a_change_of_coordinator() -> None:
    member = Member()
    member.joined(0, 1)
    assert member.take(1)
    member.call({1: 9})
    member.beat(2, 0)
    assert [said_owned(call.message) for call in member.pending(GroupHeartbeat)] == [  # type: ignore[arg-type]
        {0, 1}
    ]
    member.answer(CommitOffsets, NotCoordinator("not me", leader="n2"))
    assert member.pending(CommitOffsets) == []
    member.step(0.01)
    (again,) = member.pending(CommitOffsets)
    assert again.address == THERE
    assert member.commit_answered() == {1: 9}
    assert said_owned(member.pending(GroupHeartbeat)[-1].message) == {0}  # type: ignore[arg-type]


@pytest.mark.parametrize("auto_commit", [False, True])
def test_a_release_waits_for_the_applications_own_commit(auto_commit: bool) -> None:
    """Repeated once the partition has gone and come back, it would put back what another has committed since."""
    member = Member(auto_commit=auto_commit)
    member.joined(0, 1)
    answers = committing(member, p1=9)
    behind = committing(member, p0=7)
    member.beat(2, 0)
    member.answer(CommitOffsets, NotCoordinator("not me", leader="n2"))
    assert member.owned == {0}
    member.step(0.1)
    assert said_owned(member.asked(GroupHeartbeat)) == {0, 1}
    assert member.commit_answered() == {1: 9}
    assert answers == [None]
    assert member.commit_answered() == {0: 7}
    assert behind == [None]
    assert said_owned(member.pending(GroupHeartbeat)[-1].message) == {0}  # type: ignore[arg-type]
    assert not member.pending(CommitOffsets)


def test_a_member_leaves_as_soon_as_the_commit_that_a_release_waits_for_is_answered() -> None:
    member = Member(auto_commit=False)
    member.joined(0, 1)
    committing(member, p1=9)
    member.beat(2, 0)
    member.group.close(lambda: None, keep=False, deadline=member.now + 3)
    assert member.commit_answered() == {1: 9}
    assert member.asked(GroupHeartbeat).member_epoch == -1


def test_a_release_that_waits_for_a_commit_does_not_wait_beyond_its_deadline() -> None:
    member = Member(auto_commit=False)
    member.joined(0, 1)
    answers = committing(member, p1=9)
    member.beat(2, 0)
    for _ in range(50):
        member.step(0.1)
        while member.pending(GroupHeartbeat):
            member.beat(2, news=False)
        if member.pending(CommitOffsets):
            member.answer(CommitOffsets, NotReady("starting"))
        if member.pending(FindCoordinator):
            member.found()
    assert place(1) in member.group.membership.held
    while not answers:
        member.step(0.5)
    assert place(1) not in member.group.membership.held


def test_a_position_that_goes_back_to_the_committed_one_is_committed_over_what_is_on_its_way() -> (
    None
):
    member = Member()
    member.joined(0, 1)
    assert member.take(1)
    member.call({1: 10})
    member.step(1.1)
    assert member.commit_answered() == {1: 10}
    assert member.take(1)
    member.call({1: 20})
    member.step(1.1)
    assert member.asked(CommitOffsets).offsets[0].offset == 20
    assert member.take(1)  # the application has sought back, and read a little
    member.call({1: 10})
    member.beat(2, 0)
    assert said_owned(member.pending(GroupHeartbeat)[-1].message) == {0, 1}  # type: ignore[arg-type]
    assert member.commit_answered() == {1: 20}
    assert member.commit_answered() == {1: 10}
    assert said_owned(member.pending(GroupHeartbeat)[-1].message) == {0}  # type: ignore[arg-type]


def test_commits_go_one_after_the_other() -> None:
    member = Member()
    member.joined(0)
    first = committing(member, p0=6)
    second = committing(member, p0=7)
    assert len(member.pending(CommitOffsets)) == 1
    number = member.asked(CommitOffsets).number
    member.answer(CommitOffsets, RequestTimedOut("slow"))
    member.step(0.1)
    member.found()
    member.step(0.1)
    assert member.asked(CommitOffsets).number == number, "repeated, it is the same"
    assert member.commit_answered() == {0: 6}
    assert member.asked(CommitOffsets).number > number
    assert member.commit_answered() == {0: 7}
    assert (first, second) == ([None], [None])


def test_a_commit_is_answered_with_what_was_refused() -> None:
    member = Member()
    member.joined(0)
    answers = committing(member, p0=6, p3=9)
    refused = GroupOffset(topic="t", partition=3, offset=9, error="not_owned")
    member.answer(CommitOffsets, CommitOffsetsReply(refused=[refused]))
    (error,) = answers
    assert isinstance(error, NotOwned)
    assert error.details == {"partitions": [["t", 3]]}
    assert member.group.commits.committed[place(0)] == 6


@pytest.mark.parametrize("error", [MemberFenced("out"), UnknownGroup("gone")])
def test_a_commit_that_is_refused_for_good_is_told_so(error: ZBrokerError) -> None:
    member = Member()
    member.joined(0)
    answers = committing(member, p0=6)
    member.answer(CommitOffsets, error)
    assert answers == [error]


def test_a_commit_at_a_stale_epoch_is_repeated_with_the_new_one() -> None:
    member = Member()
    member.joined(0)
    answers = committing(member, p0=6)
    member.answer(CommitOffsets, StaleMemberEpoch("stale"))
    member.beat(2, 0)
    member.step(0.2)
    assert member.asked(CommitOffsets).member_epoch == 2
    member.commit_answered()
    assert answers == [None]


def test_a_commit_is_not_for_what_is_given_to_the_member_after_it() -> None:
    """The application may not know yet that the partition went; repeated, it would put back what another committed."""
    member = Member()
    member.joined(0, 1)
    member.beat(2, 0)
    committing(member, p1=6)
    member.beat(2, 0)
    member.beat(4, 0, 1)
    assert member.owned == {0, 1}
    member.answer(CommitOffsets, NotCoordinator("not me", leader="n2"))
    member.step(0.1)
    assert member.asked(CommitOffsets).member_epoch == 2


def test_a_commit_that_nobody_answers_ends_at_its_deadline() -> None:
    member = Member()
    member.joined(0)
    answers = committing(member, p0=6)
    for _ in range(30):
        member.step(0.5)
    (error,) = answers
    assert isinstance(error, RequestTimedOut)
    assert error.outcome_unknown


def test_a_commit_behind_one_without_a_deadline_ends_at_its_own() -> None:
    """Automatic commits go on for as long as it takes; an application that commits waits no longer for that."""
    member = Member()
    member.joined(0)
    patient: list[ZBrokerError | None] = []
    member.group.commits.submit(Commit({place(0): Position(6)}, patient.append))
    member.step()
    member.answer(CommitOffsets, NotCoordinator("not me"))
    answers: list[ZBrokerError | None] = []
    member.group.commit(Commit({place(0): Position(7)}, answers.append, member.now + 1))
    member.step()
    assert not member.pending(CommitOffsets), "nobody is known to coordinate"
    assert member.wanted is not None
    assert member.wanted <= member.now + 1
    member.step(0.9)
    assert answers == []
    member.step(0.1)
    assert [type(error) for error in answers] == [RequestTimedOut]
    assert patient == []
    member.found()
    member.step(0.1)
    assert member.commit_answered() == {0: 6}
    assert patient == [None]


def test_automatic_commits_that_fail_are_a_warning_once(caplog: pytest.LogCaptureFixture) -> None:
    member = Member()
    member.joined(0)

    def commit(offset: int, outcome: Any) -> int:
        """What is done is committed by itself, which is answered so; tells how many warnings there are."""
        assert member.take(0)
        member.call({0: offset})
        member.step(1.1)
        member.answer(CommitOffsets, outcome)
        return len([one for one in caplog.records if "committing positions" in one.message])

    assert commit(6, InvalidRequest("too many")) == 1
    assert commit(7, InvalidRequest("too many")) == 1
    assert commit(8, CommitOffsetsReply()) == 1
    assert commit(9, InvalidRequest("too many")) == 2


def test_after_a_commit_whose_outcome_is_not_known_what_is_done_is_committed_again() -> None:
    """It may have arrived; then what was committed before it stands no more."""
    member = Member()
    member.joined(0)
    assert member.take(0)
    member.call({0: 10})
    member.step(1.1)
    assert member.commit_answered() == {0: 10}
    answers = committing(member, p0=20)
    while not answers:
        member.step(0.5)
    assert isinstance(answers[0], RequestTimedOut)
    for _ in range(20):
        member.step(0.1)
        if member.pending(FindCoordinator):
            member.found()
    assert member.commit_answered() == {0: 10}


def test_commits_under_way_when_the_member_is_out_are_told() -> None:
    member = Member()
    member.joined(0)
    answers = committing(member, p0=6)
    member.answer(GroupHeartbeat, MemberFenced("you are out"))
    assert isinstance(answers[0], MemberFenced)


def test_a_commit_after_the_member_was_put_out_says_why() -> None:
    member = Member()
    member.joined(0)
    member.answer(GroupHeartbeat, MemberFenced("you are out"))
    assert isinstance(committing(member, p0=6)[0], MemberFenced)
    assert isinstance(member.custody.error, MemberFenced), "its next poll still says so"


def test_a_member_that_is_not_in_commits_nothing() -> None:
    member = Member()
    assert isinstance(committing(member, p0=6)[0], NotOwned)


# Leaving ---


def test_offsets_that_cannot_be_had_do_not_end_a_member_that_leaves_by_itself() -> None:
    member = Member()
    member.group.join(member.now)
    member.step()
    member.metadata()
    member.found()
    member.beat(1, 0)
    left: list[bool] = []
    member.group.close(lambda: left.append(True), keep=False, deadline=member.now + 3)
    member.step()
    assert member.asked(GroupHeartbeat).member_epoch == -1
    for _ in member.pending(FetchOffsets):
        member.answer(FetchOffsets, InvalidRequest("no"))
    assert member.custody.error is None
    member.answer(GroupHeartbeat, GroupHeartbeatReply(member_epoch=-1))
    assert left == [True]


@pytest.mark.parametrize(("instance", "epoch"), [(None, -1), ("i1", -2)])
def test_closing_commits_and_leaves(instance: str | None, epoch: int) -> None:
    member = Member(instance=instance)
    member.joined(0)
    assert member.take(0)
    member.call({0: 8})
    left: list[bool] = []
    member.group.close(lambda: left.append(True), keep=True, deadline=member.now + 3)
    member.step()
    assert not member.take(0)
    assert not member.pending(Fetch)
    assert member.commit_answered() == {0: 8}
    leaving = member.asked(GroupHeartbeat)
    assert leaving.member_epoch == epoch
    assert not left
    member.answer(GroupHeartbeat, GroupHeartbeatReply(member_epoch=-1))
    assert left == [True]


def test_closing_is_bounded_where_nobody_answers() -> None:
    member = Member()
    member.joined(0)
    assert member.take(0)
    member.call({0: 8})
    left: list[bool] = []
    member.group.close(lambda: left.append(True), keep=True, deadline=member.now + 3)
    for _ in range(6):
        assert not left
        member.step(0.5)
    assert left == [True]


def test_closing_a_member_that_never_joined_is_over_at_once() -> None:
    member = Member()
    left: list[bool] = []
    member.group.close(lambda: left.append(True), keep=True, deadline=member.now + 3)
    assert left == [True]


def test_leaving_goes_to_whoever_coordinates_by_then() -> None:
    member = Member()
    member.joined(0)
    left: list[Any] = []
    member.group.close(lambda: left.append(True), keep=True, deadline=member.now + 3)
    member.step()
    member.answer(GroupHeartbeat, NotCoordinator("not me", leader="n2"))
    (call,) = member.pending(GroupHeartbeat)
    assert call.address == THERE != HERE
    member.answer(GroupHeartbeat, MemberFenced("you are out already"))
    assert left == [True]


# The end ---


def answer_ends(member: Member, **ends: int) -> None:
    """Answers every question for where a partition ends: `p0=5` and so on."""
    for call in member.pending(Offsets):
        end = ends[f"p{call.message.partition}"]  # type: ignore[attr-defined]
        member.reply(call, OffsetsReply(offset=end, high_watermark=end, log_start=0))


def test_the_end_is_reached_when_what_is_not_read_is_revoked() -> None:
    member = Member(until_end=True)
    member.joined(0, 1)
    answer_ends(member, p0=5, p1=9)
    assert not member.core.ended
    member.beat(2, 0)
    assert member.core.ended
    member.beat(3)
    assert member.core.ended


def test_the_end_waits_for_what_is_assigned_and_not_read_yet() -> None:
    member = Member(until_end=True)
    member.joined(0, 1)
    answer_ends(member, p0=5, p1=9)
    member.beat(2, 0, 2)
    assert not member.core.ended
    member.offsets({2: 5})
    assert not member.core.ended
    answer_ends(member, p2=5)
    assert member.core.ended
