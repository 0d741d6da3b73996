"""A cluster of three as one scripted server: what clients are told of several nodes is what a test writes down.

Every node has the address of the one `FakeBroker`. Requests that change something are kept as they came, and answered
as the script's state says; a test changes that state as it goes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fakebroker import FakeBroker

from zbroker.errors import InvalidRequest, UnknownTopic
from zbroker.protocol import messages

TOPIC_ID = "0" * 31 + "7"


def partition(number: int, leader: str | None, replicas: str, isr: str, **more: Any) -> Any:
    """A partition by hand: replicas and ISR are node numbers, such as `"123"`."""
    named = [[f"node{digit}" for digit in digits] for digits in (replicas, isr)]
    return messages.Partition(
        partition=number, leader=leader, epoch=4, replicas=named[0], isr=named[1], **more
    )


class ScriptedCluster:
    """Three nodes, all voters, and one topic of two partitions. Change its attributes as the script goes on.

    Attributes:
        down: names of the nodes that are taken for dead.
        partitions: those of the topic `sales`.
        changes: requests that were to change something.
        on_move, on_accept: called with each request that moves partitions, or that accepts a loss.
    """

    def __init__(self) -> None:
        self.down: set[str] = set()
        self.drained: set[str] = set()
        self.voters = ["node1", "node2", "node3"]
        self.controller: str | None = "node1"
        self.full = False
        self.partitions = [
            partition(0, "node1", "123", "123"),
            partition(1, "node2", "231", "231"),
        ]
        self.changes: list[Any] = []
        self.on_move: Callable[[messages.MovePartitions], None] = lambda _: None
        self.on_accept: Callable[[messages.AcceptLoss], None] = lambda _: None
        self.broker = FakeBroker({}, self._answer)

    def __enter__(self) -> ScriptedCluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.broker.stop()

    @property
    def server(self) -> str:
        return self.broker.server

    def _topic(self) -> messages.Topic:
        return messages.Topic(
            name="sales", topic_id=TOPIC_ID, settings={"partitions": 2, "replicas": 3, "min_insync": 2},
            partitions=list(self.partitions),
        )  # fmt: skip

    def _answer(self, _broker: FakeBroker, request: Any, _body: Any) -> Any:
        if isinstance(
            request,
            messages.MovePartitions
            | messages.DrainNode
            | messages.ChangeVoters
            | messages.AcceptLoss,
        ):
            self.changes.append(request)
        match request:
            case messages.Metadata():
                return self._metadata(request)
            case messages.Status():
                return messages.StatusReply(
                    node="node1", software="zbroker 9", uptime=75_000, clients=3, partitions=2, leading=1,
                    size=1536, disk_full=self.full,
                )  # fmt: skip
            case messages.Stats():
                return messages.StatsReply(topic_id=TOPIC_ID)
            case messages.MovePartitions():
                if request.partition is not None and request.partition >= len(self.partitions):
                    return InvalidRequest(f"topic 'sales' has no partition {request.partition}")
                self.on_move(request)
                return messages.MovePartitionsReply(topic=self._topic())
            case messages.AcceptLoss():
                if self.partitions[request.partition].leader is not None:
                    return InvalidRequest(f"partition {request.partition} of 'sales' has a leader")
                self.on_accept(request)
                return messages.AcceptLossReply(topic=self._topic())
            case messages.DrainNode():
                if request.node not in self._names():
                    return InvalidRequest(f"the cluster has no node {request.node!r}")
                (self.drained.discard if request.undo else self.drained.add)(request.node)
                return messages.DrainNodeReply(leading=1 if request.node == "node3" else 0)
            case messages.ChangeVoters():
                if request.action == "remove":
                    self.voters.remove(request.node)
                return messages.ChangeVotersReply(voters=list(self.voters))
        return None

    def _names(self) -> list[str]:
        return ["node1", "node2", "node3"]

    def _metadata(self, request: messages.Metadata) -> messages.MetadataReply:
        wanted = ["sales"] if request.topics is None else request.topics
        return messages.MetadataReply(
            cluster="c" * 32, cluster_name="lab", version=17, controller=self.controller,
            nodes=[
                messages.Node(
                    name=name, host="127.0.0.1", port=self.broker.port, alive=name not in self.down,
                    voter=name in self.voters, drained=name in self.drained,
                )
                for name in self._names()
            ],
            topics=[
                self._topic() if name == "sales" else messages.Topic(name=name, error=UnknownTopic.code)
                for name in wanted
            ],
        )  # fmt: skip
