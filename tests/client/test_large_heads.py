"""Clients of very many topics and partitions: what is too much for one head goes in several, or is asked for whole."""

from __future__ import annotations

from typing import Any

import pytest
from client.group_world import HERE, Member, place, topic_id
from fakebroker import FakeBroker
from fakegroups import FakeGroups

from zbroker import Admin
from zbroker.client.committing import Commit, Position
from zbroker.client.exchange import Exchange
from zbroker.client.membership import owned_list
from zbroker.client.metadata import UNKNOWN_GRACE, Cluster
from zbroker.client.parts import parts_of
from zbroker.client.records import TopicPartition
from zbroker.errors import MemberFenced, NotOwned, RequestTimedOut, ZBrokerError
from zbroker.protocol.frames import HEAD_MAX, encode
from zbroker.protocol.messages import (
    CommitOffsets,
    CommitOffsetsReply,
    FetchOffsets,
    FetchOffsetsReply,
    GroupOffset,
    Metadata,
    MetadataReply,
    Node,
    Partition,
    Topic,
)

MANY = 1000
TOPICS = [f"sensors.temperature-{number:04}" for number in range(4000)]


def large_member(**settings: Any) -> Member:
    """A member that was given a thousand partitions, and asks where to begin."""
    member = Member(**settings)
    member.group.join(member.now)
    member.step()
    member.metadata(partitions=MANY)
    member.found()
    member.beat(1, *range(MANY))
    return member


def answer_offsets(member: Member) -> int:
    """Answers all questions for committed positions; tells how many they were."""
    count = 0
    while member.pending(FetchOffsets):
        asked: Any = member.pending(FetchOffsets)[0].message
        assert len(encode(asked)) < HEAD_MAX
        found = [
            GroupOffset(topic_id=topic_id(), topic="t", partition=n, offset=5, epoch=1)
            for one in asked.partitions
            for n in one.partitions
        ]
        member.answer(FetchOffsets, FetchOffsetsReply(offsets=found))
        count += 1
    return count


def commit_all(member: Member) -> list[ZBrokerError | None]:
    """The application commits a thousand positions; the list gets what it is answered."""
    answers: list[ZBrokerError | None] = []
    positions = {place(n): Position(2**62 + n, 2**30) for n in range(MANY)}
    member.group.commit(Commit(positions, answers.append, member.now + 10))
    member.step()
    return answers


def test_a_member_of_a_thousand_partitions_asks_for_its_positions_in_parts() -> None:
    member = large_member()
    assert answer_offsets(member) > 1
    assert member.reads == set(range(MANY))
    assert all(reader.splice.position == 5 for reader in member.core.readers.values())


def test_a_thousand_positions_are_committed_in_parts_and_answered_once() -> None:
    member = large_member()
    answer_offsets(member)
    answers = commit_all(member)
    committed: dict[int, int] = {}
    numbers = []
    while member.pending(CommitOffsets):
        assert answers == []
        sent = member.asked(CommitOffsets)
        assert len(encode(sent)) < HEAD_MAX
        numbers.append(sent.number)
        committed |= member.commit_answered()
    assert answers == [None]
    assert committed == {n: 2**62 + n for n in range(MANY)}
    assert len(numbers) > 1
    assert numbers == sorted(set(numbers))
    assert member.group.commits.committed == {place(n): 2**62 + n for n in range(MANY)}


def test_a_commit_in_parts_ends_with_the_first_error_once_all_are_answered() -> None:
    member = large_member()
    answer_offsets(member)
    answers = commit_all(member)
    refused = GroupOffset(topic="t", partition=3, offset=9, error="not_owned")
    member.answer(CommitOffsets, CommitOffsetsReply(refused=[refused]))
    while member.pending(CommitOffsets):
        assert answers == []
        member.commit_answered()
    assert [type(error) for error in answers] == [NotOwned]
    assert member.group.commits.committed[place(3)] == 5
    assert member.group.commits.committed[place(MANY - 1)] == 2**62 + MANY - 1


def test_a_commit_in_parts_ends_once_where_the_member_is_out_or_nobody_answers() -> None:
    member = large_member()
    answer_offsets(member)
    late = commit_all(member)
    member.commit_answered()
    member.step(10)
    assert [type(error) for error in late] == [RequestTimedOut]
    out = commit_all(member)
    member.group.commits.fail_all(MemberFenced("out"))
    assert [type(error) for error in out] == [MemberFenced]


@pytest.mark.parametrize("length", [1, 20, 249])
def test_a_part_fits_into_a_head_whatever_the_names_and_offsets(length: int) -> None:
    places = {
        TopicPartition(f"{n:0>{length}}"[-length:], 2**31 - 1 - n): "f" * 32 for n in range(2000)
    }
    parts = parts_of(places)
    assert {place: value for part in parts for place, value in part.items()} == places
    for part in parts:
        offsets = [
            GroupOffset(
                topic_id=found, topic=topic, partition=number, offset=2**63 - 1, epoch=2**31 - 1
            )
            for (topic, number), found in part.items()
        ]
        commit = CommitOffsets(
            id=2**63 - 1, group="g" * 255, member="m" * 255, member_epoch=2**31 - 1,
            number=2**63 - 1, offsets=offsets,
        )  # fmt: skip
        assert len(encode(commit)) < HEAD_MAX
        fetch = FetchOffsets(id=2**63 - 1, group="g" * 255, partitions=owned_list(part))
        assert len(encode(fetch)) < HEAD_MAX


def test_nothing_is_one_part() -> None:
    assert parts_of({}) == [{}]


def test_a_group_of_a_thousand_partitions_is_reset() -> None:
    topic = "t" * 40
    groups = FakeGroups({topic: MANY})
    with FakeBroker({topic: MANY}, groups) as broker, Admin(broker.server) as admin:
        changes = admin.reset_group("g", "earliest", topic)
    assert len(changes) == MANY
    assert groups.committed() == {(topic, n): 0 for n in range(MANY)}
    assert all(len(encode(request)) < HEAD_MAX for request in groups.log)


def test_the_metadata_of_four_thousand_topics_are_asked_for_whole() -> None:
    exchange = Exchange()
    cluster = Cluster((HERE,), exchange, lambda: 0.0)
    now = 100.0
    for name in (*TOPICS, "sails"):
        cluster.want(name, now)

    def answer() -> None:
        cluster.step(now)
        (call,) = exchange.calls.values()
        assert isinstance(call.message, Metadata)
        assert call.message.topics is None
        assert len(encode(call.message)) < HEAD_MAX
        reply = MetadataReply(
            cluster="c", version=1, controller="n1",
            nodes=[Node(name="n1", host=HERE.host, port=HERE.port)],
            topics=[
                Topic(name=name, topic_id=topic_id(), partitions=[Partition(partition=0, leader="n1")])
                for name in (*TOPICS, "unused")
            ],
        )  # fmt: skip
        reply.id = call.id
        exchange.on_reply(HERE, reply, None, now)

    answer()
    assert list(cluster.topics) == TOPICS
    assert not cluster.missing
    now += UNKNOWN_GRACE + 0.1
    answer()
    assert list(cluster.missing) == ["sails"]
    cluster.drop("sails")
    for name in TOPICS[10:]:
        cluster.drop(name)
    now += 60
    cluster.step(now)
    (call,) = exchange.calls.values()
    assert isinstance(call.message, Metadata)
    assert call.message.topics == TOPICS[:10]
