"""`Admin` and groups: on a real node, and where a script refuses."""

from __future__ import annotations

import asyncio
import datetime
import time
from collections.abc import Iterator
from typing import Any

import pytest
from fakebroker import FakeBroker
from fakegroups import FakeGroups

from zbroker import (
    Admin,
    AsyncAdmin,
    Consumer,
    GroupNotEmpty,
    InvalidRequest,
    NotCoordinator,
    NotReady,
    Producer,
    UnknownGroup,
    UnknownPartition,
    UnknownTopic,
)
from zbroker.protocol.messages import DescribeGroup, ListGroups
from zbroker.testing.nodes import NodeProcess

HOUR_MS = 3_600_000


@pytest.fixture
def admin(node: NodeProcess) -> Iterator[Admin]:
    """Of a node with ten records in each of two partitions, half of them an hour old."""
    with Admin(node.servers) as client:
        client.create_topic("sales", partitions=2)
        now = int(time.time() * 1000)
        with Producer(node.servers) as producer:
            for number in range(20):
                at = now - (2 * HOUR_MS if number < 10 else 0)
                producer.send("sales", b"%d" % number, partition=number % 2, timestamp=at)
        yield client


def read(servers: str, count: int, **options: Any) -> Consumer:
    """A member that has been handed so many records."""
    consumer = Consumer(
        servers, "sales", group="g", start="earliest", client_id="reader", **options
    )
    found = 0
    while found < count:
        found += len(consumer.poll(10, count - found))
    return consumer


def offsets(admin: Admin) -> dict[int, int | None]:
    return {one.partition: one.offset for one in admin.describe_group("g").offsets}


def test_a_group_is_described_with_members_and_lag(node: NodeProcess, admin: Admin) -> None:
    assert admin.groups() == []
    with pytest.raises(UnknownGroup):
        admin.describe_group("g")
    with read(node.servers, 20, instance="i1") as consumer:
        consumer.commit({("sales", 0): 4, ("sales", 1): 10})
        found = admin.describe_group("g")
        assert (found.name, found.coordinator, found.state) == ("g", "node1", "stable")
        (member,) = found.members
        assert (member.instance, member.client, member.topics) == ("i1", "reader", ("sales",))
        assert member.assignment == member.target == (("sales", 0), ("sales", 1))
        assert [(one.offset, one.high_watermark, one.lag) for one in found.offsets] == [
            (4, 10, 6), (10, 10, 0),
        ]  # fmt: skip
        assert {one.member for one in found.offsets} == {member.id}
        assert found.lag == 6
        assert [(one.name, one.members) for one in admin.groups()] == [("g", 1)]


def test_a_group_without_members_is_put_anywhere(node: NodeProcess, admin: Admin) -> None:
    read(node.servers, 20).close()
    assert offsets(admin) == {0: 10, 1: 10}
    for to, expected in (
        ("earliest", 0), (7, 7), (99, 10), (("shift", -3), 7), (("shift", 100), 10), ("latest", 10),
        (datetime.timedelta(hours=1), 5), (("shift", -100), 0),
    ):  # fmt: skip
        before = offsets(admin)
        planned = admin.reset_group("g", to, dry_run=True)
        assert offsets(admin) == before
        assert admin.reset_group("g", to) == planned
        assert [one.after for one in planned] == [expected, expected], to
        assert offsets(admin) == {0: expected, 1: expected}
    admin.reset_group("g", "latest", topics=[("sales", 1)])
    assert offsets(admin) == {0: 0, 1: 10}
    admin.reset_group("g", {("sales", 0): 3})
    assert offsets(admin) == {0: 3, 1: 10}
    with read(node.servers, 7) as consumer:
        assert consumer.position() == {("sales", 0): 10, ("sales", 1): 10}


def test_a_group_that_does_not_exist_is_made_by_a_reset_that_names_topics(
    node: NodeProcess, admin: Admin
) -> None:
    with pytest.raises(UnknownGroup):
        admin.reset_group("g", "earliest")
    (first, second) = admin.reset_group("g", 6, "sales")
    assert (first.before, first.after, second.after) == (None, 6, 6)
    with read(node.servers, 8) as consumer:
        assert sum(consumer.position().values()) == 20


@pytest.mark.parametrize(("to", "topics", "error"), [
    ("sometime", None, InvalidRequest), (-1, None, InvalidRequest), ({}, None, InvalidRequest),
    ({("sales", 0): -1}, None, InvalidRequest), (("shift", 1.5), None, InvalidRequest),
    (3, [], InvalidRequest), (3, [7], InvalidRequest), (3, ["nonesuch"], UnknownTopic),
    (3, [("sales", 2)], UnknownPartition), (("shift", 1), ["sales"], InvalidRequest),
])  # fmt: skip
def test_a_reset_to_nonsense_is_refused(
    admin: Admin, to: Any, topics: Any, error: type[Exception]
) -> None:
    with pytest.raises(error):
        admin.reset_group("new", to, topics if topics is not None else "sales")


def test_a_group_with_members_is_left_alone(node: NodeProcess, admin: Admin) -> None:
    with read(node.servers, 20):
        for change in (
            lambda: admin.reset_group("g", "earliest"),
            lambda: admin.reset_group("g", "earliest", dry_run=True),
            lambda: admin.delete_offsets("g", "sales"),
            lambda: admin.delete_group("g"),
        ):
            with pytest.raises(GroupNotEmpty):
                change()
    assert offsets(admin) == {0: 10, 1: 10}


def test_offsets_and_groups_are_deleted(node: NodeProcess, admin: Admin) -> None:
    read(node.servers, 20).close()
    gone = admin.delete_offsets("g", [("sales", 0)])
    assert [(one.partition, one.before, one.after) for one in gone] == [(0, 10, None)]
    assert offsets(admin) == {1: 10}
    admin.delete_group("g")
    with pytest.raises(UnknownGroup):
        admin.delete_group("g")


def test_the_asyncio_face_does_the_same(node: NodeProcess, admin: Admin) -> None:
    read(node.servers, 20).close()

    async def work() -> None:
        async with AsyncAdmin(node.servers) as client:
            assert [one.name for one in await client.groups()] == ["g"]
            assert (await client.describe_group("g")).lag == 0
            assert len(await client.reset_group("g", "earliest", dry_run=True)) == 2
            assert len(await client.delete_offsets("g", "sales")) == 2
            await client.delete_group("g")

    asyncio.run(work())


def test_a_coordinator_that_moves_or_starts_is_asked_again() -> None:
    groups = FakeGroups({"t": 1})
    refused: list[type] = []

    def hook(request: Any) -> Any:
        if isinstance(request, DescribeGroup | ListGroups) and refused.count(type(request)) < 3:
            refused.append(type(request))
            return (NotCoordinator if isinstance(request, DescribeGroup) else NotReady)("not now")
        return None

    groups.hook = hook
    with FakeBroker({"t": 1}, groups) as broker, Admin(broker.server) as admin:
        assert admin.describe_group("g").coordinator == "fake"
        assert [one.name for one in admin.groups()] == ["g"]
    assert len(refused) == 6
