"""Consumer groups at real nodes, by bare messages: joining, releasing, leaving, crashing; and a REQ client by hand."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rawclient import RawClient

from zbroker.protocol.messages import (
    CommitOffsets,
    DescribeGroup,
    ErrorReply,
    FetchOffsets,
    FindCoordinator,
    FindCoordinatorReply,
    GroupHeartbeat,
    GroupHeartbeatReply,
    GroupOffset,
    ListGroups,
    TopicPartitions,
)
from zbroker.testing.nodes import ClusterProcesses, NodeProcess, running_node, wait_for

EXAMPLE = Path(__file__).parents[2] / "examples" / "bare_member.py"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    """One node for all of these tests, each with groups of its own."""
    with running_node(tmp_path_factory.mktemp("groups") / "node", http=True) as node:
        yield node


class BareMember:
    """A member by hand: it sends what it is told, and releases when it is told."""

    def __init__(self, servers: str, group: str, name: str, topic: str, **fields: Any) -> None:
        self.client = RawClient(servers)
        self.group, self.name, self.topic, self.fields = group, name, topic, fields
        self.epoch = 0
        self.assigned: list[int] = []
        self.held: list[int] = []
        self.topic_id = ""
        wait_for(
            lambda: isinstance(self.client.ask(FindCoordinator(group=group)), FindCoordinatorReply)
        )

    def beat(self, *, owned: bool = True, wait: int = 0, epoch: int | None = None) -> Any:
        """One heartbeat, and what it says."""
        holds = [TopicPartitions(topic_id=self.topic_id, partitions=self.held)] if self.held else []
        joins = self.epoch == 0
        request = GroupHeartbeat(
            group=self.group, member=self.name, member_epoch=self.epoch if epoch is None else epoch,
            topics=[self.topic] if joins else [], owned=holds if owned or joins else None, wait=wait,
            **(self.fields if joins else {}),
        )  # fmt: skip
        reply = self.client.ask(request)
        if isinstance(reply, GroupHeartbeatReply) and reply.member_epoch >= 0:
            self.epoch = reply.member_epoch
            if reply.assignment is not None:
                self.assigned = [n for each in reply.assignment for n in each.partitions]
                self.held = sorted({*self.held, *self.assigned})
                for each in reply.assignment:
                    self.topic_id = each.topic_id
        return reply

    def release(self) -> None:
        """Gives back what it is to."""
        self.held = list(self.assigned)

    def commit(self, *offsets: int) -> Any:
        positions = [
            GroupOffset(topic=self.topic, partition=number, offset=at)
            for number, at in enumerate(offsets)
        ]
        return self.client.ask(
            CommitOffsets(
                group=self.group, member=self.name, member_epoch=self.epoch, offsets=positions
            )
        )

    def close(self) -> None:
        self.client.__exit__()


def settle(*members: BareMember, partitions: int) -> None:
    """Everyone follows the protocol until everything is somebody's, in even shares."""

    def is_settled() -> bool:
        for member in members:
            reply = member.beat()
            assert isinstance(reply, GroupHeartbeatReply), reply
            member.release()
        shares = [len(member.held) for member in members]
        together = sorted(number for member in members for number in member.held)
        return together == list(range(partitions)) and max(shares) - min(shares) <= 1

    wait_for(is_settled, 10, "even shares")


@pytest.fixture
def topic(shared: NodeProcess, request: pytest.FixtureRequest) -> str:
    name = request.node.name[:100]
    with RawClient(shared.servers) as client:
        client.create_topic(name, partitions=4)
    return name


def test_members_share_and_who_leaves_or_dies_is_replaced(shared: NodeProcess, topic: str) -> None:
    group = topic
    first = BareMember(shared.servers, group, "m1", topic)
    settle(first, partitions=4)
    second = BareMember(shared.servers, group, "m2", topic)
    third = BareMember(shared.servers, group, "m3", topic, session_timeout=1000)
    settle(first, second, third, partitions=4)
    second.beat(epoch=-1)
    settle(first, third, partitions=4)
    third.close()  # without a word
    begun = time.monotonic()
    settle(first, partitions=4)
    assert time.monotonic() - begun > 0.5, "its session has to end first"
    assert isinstance(third.client, RawClient)
    first.close()
    second.close()


def test_a_held_heartbeat_is_answered_when_there_is_news(shared: NodeProcess, topic: str) -> None:
    first = BareMember(shared.servers, topic, "m1", topic)
    settle(first, partitions=4)
    held = GroupHeartbeat(group=topic, member="m1", member_epoch=first.epoch, wait=5000)
    number = first.client.send(held)
    assert not first.client.socket.poll(300), "there is no news"
    second = BareMember(shared.servers, topic, "m2", topic)
    second.beat()
    reply, _ = first.client.receive(2.0)
    assert reply.id == number
    assert [len(each.partitions) for each in reply.assignment] == [2]
    first.close()
    second.close()


def test_positions_survive_kill_9_and_the_member_goes_on(tmp_path: Path) -> None:
    with running_node(tmp_path) as node:
        with RawClient(node.servers) as client:
            client.create_topic("t", partitions=4)
        member = BareMember(node.servers, "g", "m1", "t")
        settle(member, partitions=4)
        assert member.commit(5, 6, 7, 8).refused == []
        epoch = member.epoch
        member.close()
        node.kill()
        node.start()
        with RawClient(node.servers) as client:
            wait_for(
                lambda: isinstance(client.ask(FindCoordinator(group="g")), FindCoordinatorReply)
            )
            reply = client.ask(FetchOffsets(group="g"))
            assert {each.partition: each.offset for each in reply.offsets} == {
                0: 5,
                1: 6,
                2: 7,
                3: 8,
            }
            again = client.ask(GroupHeartbeat(group="g", member="m1", member_epoch=epoch))
            assert again.member_epoch == epoch
            assert [each.partitions for each in again.assignment] == [[0, 1, 2, 3]]


def test_a_thousand_heartbeats_are_held_and_one_client_s_other_requests_are_taken(
    shared: NodeProcess, topic: str
) -> None:
    count = 1200  # more than one client may have in flight
    first = BareMember(shared.servers, topic, "m0", topic)
    client = first.client
    epochs: dict[str, int] = {}
    waiting = {}
    for number in range(count):
        name = f"m{number}"
        request = GroupHeartbeat(group=topic, member=name, topics=[topic], owned=[])
        waiting[client.send(request)] = name
        if number % 200 == 199 or number == count - 1:
            while waiting:
                reply, _ = client.receive()
                if isinstance(reply, ErrorReply):
                    assert reply.hint == "retry", reply
                    name = waiting.pop(reply.id)
                    request = GroupHeartbeat(group=topic, member=name, topics=[topic], owned=[])
                    waiting[client.send(request)] = name
                else:
                    epochs[waiting.pop(reply.id)] = reply.member_epoch
    assert len(epochs) == count
    for name, epoch in epochs.items():
        client.send(GroupHeartbeat(group=topic, member=name, member_epoch=epoch, wait=5000))
    with RawClient(shared.servers) as other:
        reply = other.ask(DescribeGroup(group=topic), timeout=20)
        assert len(reply.members) == count
    assert isinstance(client.ask(ListGroups(), timeout=20), object)
    first.close()


def test_the_metrics_tell_of_groups(shared: NodeProcess, topic: str) -> None:
    member = BareMember(shared.servers, topic, "m1", topic)
    settle(member, partitions=4)
    for _ in range(3):
        member.client.produce(topic, b"a", b"b", partition=0)
    assert member.commit(2).refused == []

    def metrics() -> dict[str, float]:
        member.beat(owned=False)
        with urllib.request.urlopen(f"http://127.0.0.1:{shared.http_port}/metrics") as page:
            lines = page.read().decode().splitlines()
        return {
            line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
            for line in lines
            if line[0] != "#"
        }

    lag = f'zbroker_group_lag{{group="{topic}",partition="0",topic="{topic}"}}'
    wait_for(lambda: metrics().get(lag) == 4.0, 5, "the lag of four records")
    found = metrics()
    assert found["zbroker_groups"] >= 1
    assert found["zbroker_group_members"] >= 1
    assert found["zbroker_group_rebalances_total"] >= 1
    assert found["zbroker_group_commits_total"] >= 1
    member.close()


def test_the_bare_example_joins_reads_commits_and_leaves(shared: NodeProcess, topic: str) -> None:
    with RawClient(shared.servers) as client:
        for number in range(4):
            client.produce(topic, b"%d" % number, partition=number)
    command = [sys.executable, str(EXAMPLE), shared.servers, topic, f"{topic}-example"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == ["0", "1", "2", "3"]
    again = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (again.returncode, again.stdout.split()) == (0, []), "it goes on where it was"


# The coordinator dies ---


@pytest.mark.slow
def test_another_node_coordinates_when_the_coordinator_is_killed(tmp_path: Path) -> None:
    with ClusterProcesses(tmp_path) as cluster, contextlib.ExitStack() as stack:
        cluster.wait_until_healed()
        cluster.admin.create_topic("t", partitions=4)

        def member_at(node: str, **fields: Any) -> BareMember:
            made = BareMember(cluster.nodes[node].servers, "g", "m1", "t", **fields)
            stack.callback(made.close)
            return made

        def coordinator(node: str) -> str | None:
            reply = clients[node].ask(FindCoordinator(group="g"))
            return reply.node if isinstance(reply, FindCoordinatorReply) else None

        clients = {
            name: stack.enter_context(RawClient(node.servers))
            for name, node in cluster.nodes.items()
        }
        first = wait_for(lambda: coordinator(next(iter(clients))), 10, "a coordinator")
        cluster.wait_until_healed()
        member = member_at(first, session_timeout=5000)
        settle(member, partitions=4)
        assert member.commit(1, 2, 3, 4).refused == []
        killed = time.monotonic()
        cluster.kill(first)
        others = [name for name in cluster.nodes if name != first]
        second = wait_for(
            lambda: (found := coordinator(others[0])) in others and found, 10, "another coordinator"
        )
        moved = member_at(second)
        moved.epoch, moved.held, moved.topic_id = member.epoch, member.held, member.topic_id

        def is_known() -> bool:
            return isinstance(moved.beat(), GroupHeartbeatReply)

        wait_for(is_known, 10, "an answer")
        assert time.monotonic() - killed < 5.0, "within its session"
        assert moved.epoch == member.epoch, "it has lost nothing"
        assert moved.assigned == [0, 1, 2, 3]
        offsets = moved.client.ask(FetchOffsets(group="g")).offsets
        assert {each.partition: each.offset for each in offsets} == {0: 1, 1: 2, 2: 3, 3: 4}
        assert moved.commit(5, 6, 7, 8).refused == []
        cluster.restart(first)
        cluster.wait_until_healed()
