"""What consumers in a group promise their application, against a scripted coordinator."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fakebroker import FakeBroker
from fakegroups import FakeGroups

from zbroker import (
    AsyncConsumer,
    ClientClosed,
    Consumer,
    InvalidRequest,
    MemberFenced,
    NotOwned,
    NotReady,
    Producer,
    Record,
    UnknownTopic,
)
from zbroker.protocol.messages import CommitOffsets, GroupHeartbeat

TOPICS = {"t": 4}
Fill = Callable[[int], None]


@pytest.fixture
def groups() -> FakeGroups:
    return FakeGroups(TOPICS)


@pytest.fixture
def broker(groups: FakeGroups) -> Iterator[FakeBroker]:
    with FakeBroker(TOPICS, groups) as broker:
        yield broker


@pytest.fixture
def fill(broker: FakeBroker) -> Fill:
    """Sends so many records to each partition, one batch each."""

    def send(count: int) -> None:
        with Producer(broker.server) as producer:
            for partition in range(TOPICS["t"]):
                for number in range(count):
                    producer.send("t", b"%d" % number, partition=partition)

    return send


def member(broker: FakeBroker, *topics: str, **options: Any) -> Consumer:
    options = {"group": "g", "start": "earliest", "commit_interval": 0.05} | options
    return Consumer(broker.server, *(topics or ("t",)), **options)


def until(condition: Callable[[], Any], what: str = "it", seconds: float = 10.0) -> None:
    """Waits until something is so."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.005)


def take(consumer: Consumer, count: int) -> list[Record]:
    """Polls until there are so many records."""
    found: list[Record] = []
    deadline = time.monotonic() + 10
    while len(found) < count:
        assert time.monotonic() < deadline, f"{len(found)} of {count} records"
        found += consumer.poll(0.5)
    return found


# At least once ---


def test_a_batch_in_hand_is_not_committed_before_the_next_call(
    broker: FakeBroker, groups: FakeGroups, fill: Fill
) -> None:
    fill(5)
    with member(broker) as consumer:
        places = {("t", record.partition) for record in consumer.poll(5)}
        until(lambda: places <= groups.committed().keys(), "the commit of where they begin")
        time.sleep(0.2)
        assert {groups.committed()[place] for place in places} == {0}
        consumer.poll(0)
        until(lambda: {groups.committed()[place] for place in places} == {5}, "the commit")


def test_in_an_iteration_the_record_in_hand_is_not_committed_and_those_before_it_are(
    broker: FakeBroker, groups: FakeGroups, fill: Fill
) -> None:
    fill(10)
    with member(broker) as consumer:
        for record in consumer:
            if record.offset == 6:
                place = ("t", record.partition)
                until(lambda place=place: groups.committed().get(place) == 6, "the commit")  # type: ignore[misc]
                time.sleep(0.15)
                assert groups.committed()[place] == 6
                break


def test_closing_commits_what_was_handed_over(
    broker: FakeBroker, groups: FakeGroups, fill: Fill
) -> None:
    fill(5)
    with member(broker, commit_interval=100) as consumer:
        take(consumer, 20)
    assert set(groups.committed().values()) == {5}
    with member(broker, commit_interval=100) as consumer:
        assert consumer.poll(0.3) == []


def test_leaving_a_loop_and_closing_commits_its_last_record(
    broker: FakeBroker, groups: FakeGroups, fill: Fill
) -> None:
    fill(5)
    with member(broker, commit_interval=100) as consumer:
        for record in consumer:
            if record.offset == 2:
                break
    assert groups.committed()["t", record.partition] == 3


def test_a_record_that_raised_is_not_committed(
    broker: FakeBroker, groups: FakeGroups, fill: Fill
) -> None:
    fill(5)
    seen: list[Record] = []

    def iterate() -> None:
        with member(broker, commit_interval=100) as consumer:
            for record in consumer:
                seen.append(record)
                if record.offset == 2:
                    _ = 1 / 0

    def poll() -> None:
        with member(broker, commit_interval=100) as consumer:
            seen.extend(consumer.poll(5))
            _ = 1 / 0

    for work in (iterate, poll):
        with pytest.raises(ZeroDivisionError):
            work()
        assert groups.committed()["t", seen[0].partition] == 2


def test_closing_from_another_thread_leaves_what_is_in_hand_undone(
    broker: FakeBroker, groups: FakeGroups, fill: Fill
) -> None:
    fill(5)
    consumer = member(broker, commit_interval=100)
    in_hand = {("t", record.partition) for record in consumer.poll(5)}
    closer = threading.Thread(target=consumer.close)
    closer.start()
    closer.join(10)
    assert in_hand
    assert not any(groups.committed().get(place) for place in in_hand)
    assert groups.left
    with pytest.raises(ClientClosed):
        consumer.poll(0)


# Partitions move ---


def test_members_share_and_hand_over_without_a_record_twice(
    broker: FakeBroker, groups: FakeGroups, fill: Fill
) -> None:
    fill(50)
    got: list[tuple[int, int]] = []
    lock = threading.Lock()

    def work(consumer: Consumer) -> None:
        for record in consumer:
            with lock:
                got.append((record.partition, record.offset))
            time.sleep(0.002)

    members = [member(broker) for _ in range(3)]
    threads = [threading.Thread(target=work, args=(one,)) for one in members]
    for thread in threads:
        thread.start()
        time.sleep(0.05)
    until(lambda: len(got) >= 200, "all records")
    until(lambda: sorted(len(one.assignment()) for one in members) == [1, 1, 2], "the sharing")
    for consumer in members:
        consumer.wakeup()
    for thread in threads:
        thread.join(10)
    for consumer in members:
        consumer.close()
    assert sorted(got) == [(partition, n) for partition in range(4) for n in range(50)]
    assert set(groups.committed().values()) == {50}


def test_what_is_not_in_hand_is_given_up_without_the_application(
    broker: FakeBroker, groups: FakeGroups, fill: Fill
) -> None:
    fill(1)
    with member(broker) as first:
        take(first, 4)
        first.poll(0)  # nothing is in hand now, and no call follows
        with member(broker) as second:
            second.poll(0.01)
            until(lambda: len(second.assignment()) == 2, "the handing over")
            assert len(first.assignment()) == 2


def test_an_iteration_over_a_long_batch_gives_up_in_its_middle(
    broker: FakeBroker, groups: FakeGroups, fill: Fill
) -> None:
    fill(500)
    seen: dict[int, int] = {}
    with member(broker) as first:
        for record in first:
            seen[record.partition] = record.offset
            if record.offset == 3:
                break
        in_hand = record.partition
        for place in groups.places:
            if place[1] == in_hand:
                other = member(broker)
                other.poll(0.01)
                until(lambda: len(groups.members) == 2, "joining")
                name = [one for one in groups.members if one not in groups.target.values()]
                second = next(iter(set(groups.members) - {next(iter(groups.members))}))
                groups.give(second, place)
                assert not name
        for record in first:
            if record.partition != in_hand:
                break
            assert record.offset < 100, "the batch went on after the partition was revoked"
            time.sleep(0.005)
        until(lambda: ("t", in_hand) in other.assignment(), "the release")
        following = take(other, 1)
        mine = [one for one in following if one.partition == in_hand]
        assert not mine or mine[0].offset <= 100
        other.close()


def test_the_application_hears_in_its_own_thread_and_can_commit_and_seek(
    broker: FakeBroker, groups: FakeGroups, fill: Fill
) -> None:
    fill(10)
    heard: list[tuple[str, list[Any], int]] = []

    def on_assigned(places: list[Any]) -> None:
        heard.append(("assigned", places, threading.get_ident()))
        for topic, partition in places:
            first.seek(topic, partition, 7)

    def on_revoked(places: list[Any]) -> None:
        heard.append(("revoked", places, threading.get_ident()))
        first.commit()

    first = member(broker, on_assigned=on_assigned, on_revoked=on_revoked, auto_commit=False)
    found = take(first, 12)
    assert {record.offset for record in found} == {7, 8, 9}
    with member(broker, auto_commit=False) as second:
        second.poll(0.01)
        until(lambda: len(groups.members) == 2, "joining")
        until(lambda: bool(first.poll(0.05)) or len(first.assignment()) == 2, "the release")
        until(lambda: second.poll(0.05) == [] and len(second.assignment()) == 2, "the handing over")
    kinds = [(kind, len(places)) for kind, places, _ in heard]
    assert kinds == [("assigned", 4), ("revoked", 2)]
    assert {ident for *_, ident in heard} == {threading.get_ident()}
    assert set(groups.committed().values()) == {10}
    first.close()
    assert heard[-1][0] == "revoked"  # closing gives everything up


def test_a_callback_that_raises_does_not_keep_the_partition(
    broker: FakeBroker, groups: FakeGroups, fill: Fill
) -> None:
    def on_revoked(_: list[Any]) -> None:
        raise KeyError("mine")

    first = member(broker, on_revoked=on_revoked)
    first.poll(0.2)
    with member(broker) as second:
        second.poll(0.01)
        with pytest.raises(KeyError):
            until(lambda: first.poll(0.05), "the callback")
        until(lambda: len(second.assignment()) == 2, "the release")
    with pytest.raises(KeyError):
        first.close()
    assert len(groups.left) == 2


def test_a_callback_cannot_poll(broker: FakeBroker, groups: FakeGroups) -> None:
    problems: list[Exception] = []

    def on_assigned(_: list[Any]) -> None:
        try:
            consumer.poll(0)
        except InvalidRequest as problem:
            problems.append(problem)

    consumer = member(broker, on_assigned=on_assigned)
    until(lambda: consumer.poll(0.05) or problems, "the callback")
    consumer.close()
    assert problems


# Out of the group ---


def test_a_member_that_is_out_hands_out_nothing_is_told_once_and_rejoins(
    broker: FakeBroker, groups: FakeGroups, fill: Fill
) -> None:
    fill(50)
    lost: list[Any] = []
    with member(broker, on_lost=lost.extend) as consumer:
        consumer.poll(5, max_records=1)
        (name,) = groups.members
        groups.fence(name)
        until(lambda: consumer._custody is not None and consumer._custody.error, "the fencing")
        with pytest.raises(MemberFenced) as caught:
            consumer.poll(0)
        assert caught.value.details["reason"] == "session"
        assert len(lost) == 4
        found = take(consumer, 200)
        assert len(found) == 200  # of one nothing was committed
        assert name not in groups.members


def test_a_waiting_member_is_told_at_once(broker: FakeBroker, groups: FakeGroups) -> None:
    with member(broker) as consumer:
        until(lambda: not consumer.poll(0.05) and consumer.assignment(), "joining")
        (name,) = groups.members
        threading.Timer(0.1, groups.fence, (name,)).start()
        with pytest.raises(MemberFenced):
            consumer.poll(None)


def test_a_member_whose_heartbeats_are_lost_hands_out_nothing_after_its_session(
    broker: FakeBroker, groups: FakeGroups, fill: Fill
) -> None:
    fill(50)
    with member(broker, session_timeout=0.8) as consumer:
        consumer.poll(5, max_records=1)
        groups.hook = lambda request: "drop" if isinstance(request, GroupHeartbeat) else None
        until(lambda: not consumer.poll(0, max_records=1), "the end of the session", 5)
        assert consumer.poll(0.1) == []
        groups.hook = lambda _: None
        with pytest.raises(MemberFenced):
            until(lambda: consumer.poll(1.0), "being told")


def test_a_slow_handler_keeps_its_membership(broker: FakeBroker, groups: FakeGroups) -> None:
    with member(broker, session_timeout=0.6) as consumer:
        until(lambda: not consumer.poll(0.05) and consumer.assignment(), "joining")
        time.sleep(1.5)
        assert consumer.poll(0.05) == []
        assert len(groups.members) == 1
        assert not groups.fenced


def test_a_stuck_handler_is_taken_out_told_and_rejoins(
    broker: FakeBroker, groups: FakeGroups, fill: Fill
) -> None:
    fill(5)
    with member(broker, max_poll_interval=0.5) as consumer:
        assert consumer.poll(5)
        until(lambda: groups.left, "leaving")
        assert groups.left[0][1] == -1
        with pytest.raises(MemberFenced) as caught:
            consumer.poll(0)
        assert caught.value.details["reason"] == "max_poll_interval"
        assert len(take(consumer, 20)) == 20  # what was in hand was not done


def test_an_iteration_with_short_steps_is_not_stuck(
    broker: FakeBroker, groups: FakeGroups, fill: Fill
) -> None:
    fill(40)
    with member(broker, max_poll_interval=0.3) as consumer:
        for count, _ in enumerate(consumer):
            if count == 60:
                break
            time.sleep(0.01)
    assert groups.left[0][1] == -1  # by closing, and not before
    assert len(groups.left) == 1


def test_a_replaced_instance_stays_out(broker: FakeBroker, groups: FakeGroups, fill: Fill) -> None:
    fill(5)
    with member(broker, instance="i1") as first:
        take(first, 20)
        first.poll(0)
        with member(broker, instance="i1") as second:
            second.poll(0.3)
            for _ in range(2):
                with pytest.raises(MemberFenced) as caught:
                    until(lambda: first.poll(0.2), "being told")
                assert caught.value.details["reason"] == "replaced"
            assert len(second.assignment()) == 4
            assert [epoch for _, epoch in groups.left] == []
    assert [epoch for _, epoch in groups.left] == [-2]


def test_a_coordinator_in_trouble_is_no_error(
    broker: FakeBroker, groups: FakeGroups, fill: Fill
) -> None:
    fill(5)
    refused = 0

    def hook(request: Any) -> Any:
        nonlocal refused
        if isinstance(request, GroupHeartbeat | CommitOffsets) and refused < 12:
            refused += 1
            return NotReady("starting")
        return None

    groups.hook = hook
    with member(broker) as consumer:
        assert len(take(consumer, 20)) == 20
        consumer.commit()
    assert refused == 12
    assert set(groups.committed().values()) == {5}


# Commits ---


def test_commits_of_every_form(broker: FakeBroker, groups: FakeGroups, fill: Fill) -> None:
    fill(10)
    with member(broker, auto_commit=False) as consumer:
        assert consumer.commit() is None  # nothing was handed over
        records = take(consumer, 40)
        some = next(record for record in records if record.offset == 4)
        consumer.commit(some)
        assert groups.committed() == {("t", some.partition): 5}
        consumer.commit({("t", 0): 2, ("t", 1): 3})
        assert groups.committed()["t", 0] == 2
        consumer.commit()
        assert set(groups.committed().values()) == {10}
        assert consumer.committed() == {("t", n): 10 for n in range(4)}
        assert groups.log[-1].offsets[0].epoch == 1
    assert len(groups.log) == 3


def test_committing_in_a_loop_covers_the_record_in_hand(
    broker: FakeBroker, groups: FakeGroups, fill: Fill
) -> None:
    fill(10)
    with member(broker, auto_commit=False) as consumer:
        for record in consumer:
            consumer.commit()
            assert groups.committed()["t", record.partition] == record.offset + 1
            if record.offset == 5:
                break


def test_automatic_commits_do_not_put_back_what_is_committed_in_a_loop(
    broker: FakeBroker, groups: FakeGroups, fill: Fill
) -> None:
    fill(10)
    with member(broker) as consumer:
        for record in consumer:
            place = ("t", record.partition)
            if record.offset == 4:
                consumer.commit(record)
                time.sleep(0.2)
                assert groups.committed()[place] == 5
            if record.offset == 7:  # it has gone on since
                until(lambda place=place: groups.committed()[place] == 7, "the commit")  # type: ignore[misc]
                consumer.commit()
                consumer.close()
    assert groups.committed()[place] == 8


def test_automatic_commits_do_not_undo_what_the_application_says_is_done(
    broker: FakeBroker, groups: FakeGroups, fill: Fill
) -> None:
    fill(10)
    with member(broker) as consumer:
        records = consumer.poll(5)
        place = ("t", records[0].partition)
        until(lambda: place in groups.committed(), "the commit of where it begins")
        for offset in (6, 3):  # some of it is in hand still; and some is to be done again
            consumer.commit({place: offset})
            time.sleep(0.2)
            assert groups.committed()[place] == offset
        consumer.poll(0)
        until(lambda: groups.committed()[place] == 10, "the commit of what was handed over")


def test_a_commit_of_what_is_not_owned_says_so(broker: FakeBroker, groups: FakeGroups) -> None:
    with member(broker) as consumer:
        with pytest.raises(NotOwned):
            consumer.commit({("t", 0): 1})
        until(lambda: not consumer.poll(0.05) and consumer.assignment(), "joining")
        with pytest.raises(NotOwned) as caught:
            consumer.commit({("other", 0): 1})
        assert caught.value.details["partitions"] == [["other", 0]]
        (name,) = groups.members
        groups.fence(name)
        with pytest.raises(MemberFenced):
            consumer.commit({("t", 0): 1})


@pytest.mark.parametrize("offsets", [7, [("t", 0)], {"t": 1}, {("t", 0): -1}, {("t", 0): True}])
def test_a_commit_of_nonsense_is_refused(broker: FakeBroker, offsets: Any) -> None:
    with member(broker) as consumer, pytest.raises(InvalidRequest):
        consumer.commit(offsets)


def test_without_a_group_there_is_nothing_to_commit_to(broker: FakeBroker) -> None:
    with Consumer(broker.server, "t") as consumer:
        with pytest.raises(InvalidRequest, match="group"):
            consumer.commit()
        with pytest.raises(InvalidRequest, match="group"):
            consumer.committed()


@pytest.mark.parametrize("options", [
    {"group": ""}, {"group": "g" * 256}, {"group": 7}, {"instance": ""}, {"assignor": "best"},
    {"session_timeout": 0}, {"max_poll_interval": -1}, {"commit_interval": "1"}, {"partitions": [0]},
    {"group": None, "instance": "i"}, {"group": None, "on_revoked": print},
])  # fmt: skip
def test_options_are_checked_at_once(broker: FakeBroker, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        member(broker, **options)


# Positions ---


def test_positions_and_pauses_are_of_the_time_since_a_partition_was_assigned(
    broker: FakeBroker, groups: FakeGroups, fill: Fill
) -> None:
    fill(10)
    with member(broker) as first:
        take(first, 40)
        first.pause()
        assert len(first.paused()) == 4
        with member(broker) as second:
            second.poll(0.01)
            until(lambda: first.poll(0.02) == [] and len(first.assignment()) == 2, "the release")
            assert len(first.paused()) == len(first.position()) == 2
            with pytest.raises(InvalidRequest, match="not assigned"):
                first.seek(*(set(groups.places) - set(first.assignment())).pop(), 0)
        until(lambda: first.poll(0.02) == [] and len(first.assignment()) == 4, "getting it back")
        assert len(first.paused()) == 2


def test_the_offset_in_the_log_no_more_goes_on_with_what_there_is(
    broker: FakeBroker, groups: FakeGroups, fill: Fill
) -> None:
    fill(10)
    with member(broker) as consumer:
        take(consumer, 40)
    for partition in broker.topics["t"]:
        partition.batches, partition.start = [], 20
        partition.end = 20
    fill(1)
    with member(broker, start="latest") as consumer:
        assert {record.offset for record in take(consumer, 4)} == {20}


# Topics ---


def test_patterns_without_a_group_follow_new_topics() -> None:
    with FakeBroker({"s.a": 1, "s.b": 1, "other": 1}) as broker:
        with Producer(broker.server) as producer:
            for topic in broker.topics:
                producer.send(topic, topic.encode())
        with Consumer(broker.server, "s.*", start="earliest") as consumer:
            assert {record.value for record in take(consumer, 2)} == {b"s.a", b"s.b"}
            assert consumer.assignment() == [("s.a", 0), ("s.b", 0)]
            consumer.seek("s.a", 0, 0)
            assert take(consumer, 1)[0].value == b"s.a"


def test_a_pattern_in_a_group_is_the_coordinators_to_resolve(
    broker: FakeBroker, groups: FakeGroups, fill: Fill
) -> None:
    fill(1)
    with member(broker, "t*") as consumer:
        assert len(take(consumer, 4)) == 4
    (joined,) = {
        tuple(one.topics)
        for one in broker.requests
        if isinstance(one, GroupHeartbeat) and one.member_epoch == 0
    }
    assert joined == ("t*",)


def test_a_topic_that_does_not_exist_is_told(broker: FakeBroker) -> None:
    with member(broker, "nonesuch") as consumer, pytest.raises(UnknownTopic):
        until(lambda: consumer.poll(0.5), "being told")


def test_a_position_that_is_set_before_the_first_poll(broker: FakeBroker, fill: Fill) -> None:
    fill(5)
    with Consumer(broker.server, "t", start="earliest", partitions=[1]) as consumer:
        consumer.seek("t", 1, 3)
        assert [record.offset for record in take(consumer, 2)] == [3, 4]


# asyncio ---


def test_the_asyncio_face_does_the_same(broker: FakeBroker, groups: FakeGroups, fill: Fill) -> None:
    fill(10)
    heard: list[Any] = []

    async def on_assigned(places: list[Any]) -> None:
        await asyncio.sleep(0)
        heard.extend(places)

    async def work() -> None:
        async with AsyncConsumer(
            broker.server, "t", group="g", start="earliest", on_assigned=on_assigned, commit_interval=0.05
        ) as consumer:  # fmt: skip
            count = 0
            async for record in consumer:
                count += 1
                if count == 15:
                    await consumer.commit(record)
                    assert groups.committed()["t", record.partition] == record.offset + 1
                if count == 40:
                    break
            assert sum((await consumer.committed()).values()) >= 5
            (name,) = groups.members
            groups.fence(name)
            with pytest.raises(MemberFenced):
                await consumer.poll(10)
            while sum((await consumer.committed()).values()) < 40:
                await consumer.poll(0.05)
        assert set(groups.committed().values()) == {10}

    asyncio.run(work())
    assert len(heard) == 8
