"""`Admin` on a cluster of several nodes, by script: moving, draining, voters, and what is not as it should be."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from scripted import TOPIC_ID, ScriptedCluster, partition

from zbroker import Admin, AsyncAdmin, InvalidRequest, NotReady, UnknownTopic
from zbroker.protocol import messages


@pytest.fixture
def cluster() -> Iterator[ScriptedCluster]:
    with ScriptedCluster() as running:
        yield running


@pytest.fixture
def admin(cluster: ScriptedCluster) -> Iterator[Admin]:
    with Admin(cluster.server, timeout=5) as client:
        yield client


def test_moving_says_which_topic_is_meant(cluster: ScriptedCluster, admin: Admin) -> None:
    moved = admin.move_partitions("sales", 1, ("node3", "node1"))
    (request,) = cluster.changes
    assert (request.name, request.topic_id, request.partition) == ("sales", TOPIC_ID, 1)
    assert request.to == ["node3", "node1"]
    assert len(request.request_id) == 32
    assert moved.partitions[1].replicas == ("node2", "node3", "node1")

    admin.move_partitions("sales")
    assert (cluster.changes[1].partition, cluster.changes[1].to) == (None, [])
    assert cluster.changes[1].request_id != request.request_id


def test_moving_what_is_not_there(cluster: ScriptedCluster, admin: Admin) -> None:
    with pytest.raises(UnknownTopic):
        admin.move_partitions("clicks")
    with pytest.raises(InvalidRequest, match="no partition 9"):
        admin.move_partitions("sales", 9, ["node1"])
    with pytest.raises(InvalidRequest, match=r"a list of names, such as \['node1'\]"):
        admin.move_partitions("sales", 0, "node1")


def test_draining_and_back(cluster: ScriptedCluster, admin: Admin) -> None:
    assert admin.drain("node3") == 1
    assert [node.drained for node in admin.cluster().nodes] == [False, False, True]
    assert admin.drain("node3", undo=True) == 1
    assert not any(node.drained for node in admin.cluster().nodes)
    with pytest.raises(InvalidRequest, match="'node9'"):
        admin.drain("node9")


def test_voters_change_one_at_a_time(cluster: ScriptedCluster, admin: Admin) -> None:
    assert admin.change_voters("node2", "remove") == ("node1", "node3")
    assert admin.change_voters("node3") == ("node1", "node3")
    assert [(one.node, one.action) for one in cluster.changes] == [
        ("node2", "remove"),
        ("node3", "replace"),
    ]
    assert [node.voter for node in admin.cluster().nodes] == [True, False, True]
    with pytest.raises(InvalidRequest, match="'promote'"):
        admin.change_voters("node3", "promote")  # type: ignore[arg-type]
    assert len(cluster.changes) == 2


def test_a_change_that_is_repeated_is_the_same_request(
    cluster: ScriptedCluster, admin: Admin
) -> None:
    """The first node that is asked is not ready: the second attempt must be known again."""
    answer, refused = cluster.broker.intercept, []

    def intercept(broker: Any, request: Any, body: Any) -> Any:
        if isinstance(request, messages.DrainNode) and not refused:
            refused.append(request)
            return NotReady("there is no controller yet")
        assert answer is not None
        return answer(broker, request, body)

    cluster.broker.intercept = intercept
    admin.drain("node2")
    assert [one.request_id for one in cluster.changes] == [refused[0].request_id]


def test_what_is_not_as_it_should_be(cluster: ScriptedCluster, admin: Admin) -> None:
    assert admin.cluster().unhealthy == ()
    cluster.partitions = [
        partition(0, "node1", "123", "12"),
        partition(1, None, "231", "2"),
        partition(2, "node1", "1234", "123"),
        partition(3, "node3", "312", "312", unclean=True),
    ]
    short, leaderless, moving, unclean = admin.cluster().unhealthy
    assert (short.topic, short.partition, short.missing) == ("sales", 0, ("node3",))
    assert (short.under_replicated, short.moving, short.unclean) == (True, False, False)
    assert leaderless.leader is None
    assert leaderless.missing == ("node3", "node1")
    assert (moving.under_replicated, moving.moving, moving.missing) == (False, True, ("node4",))
    assert (unclean.under_replicated, unclean.unclean) == (False, True)
    described = admin.describe_topic("sales").partitions
    assert [part.unclean for part in described] == [False, False, False, True]
    assert [part.missing for part in described[:2]] == [("node3",), ("node3", "node1")]


def test_a_loss_is_accepted_of_what_was_looked_at(cluster: ScriptedCluster, admin: Admin) -> None:
    cluster.partitions[1] = partition(1, None, "231", "2")

    def accept(request: messages.AcceptLoss) -> None:
        cluster.partitions[1] = partition(1, request.node, "231", "3", unclean=True)

    cluster.on_accept = accept
    found = admin.accept_loss("sales", 1, "node3")
    (request,) = cluster.changes
    assert (request.topic_id, request.partition, request.epoch) == (found.id, 1, 4)
    assert request.request_id
    assert (found.partitions[1].leader, found.partitions[1].unclean) == ("node3", True)
    with pytest.raises(InvalidRequest, match="has a leader"):
        admin.accept_loss("sales", 0)


def test_the_asyncio_twins(cluster: ScriptedCluster) -> None:
    async def run() -> None:
        async with AsyncAdmin(cluster.server, timeout=5) as admin:
            await admin.move_partitions("sales", 0, ["node2"])
            assert await admin.drain("node1") == 0
            assert await admin.change_voters("node2", "remove") == ("node1", "node3")
            with pytest.raises(InvalidRequest):
                await admin.accept_loss("sales", 0)
            with pytest.raises(InvalidRequest):
                await admin.move_partitions("sales", 0, "node2")

    asyncio.run(run())
    assert [type(one).__name__ for one in cluster.changes] == [
        "MovePartitions",
        "DrainNode",
        "ChangeVoters",
        "AcceptLoss",
    ]
