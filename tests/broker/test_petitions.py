"""Requests to the controller: answered late, twice, by another, to another start, or by one that lies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from broker.world import World
from mesh.mesh import Mesh

from zbroker.broker.control import Answer
from zbroker.broker.mesh import PeerState
from zbroker.broker.petitions import Petitions
from zbroker.errors import InvalidRequest, NotReady
from zbroker.protocol import messages
from zbroker.protocol.peers import Decided, ElectAnew, Forward, GrantProducerIds, Leave
from zbroker.testing.clients import SimulatedAdmin
from zbroker.testing.cluster import SimulatedCluster


class Surroundings:
    """The metadata, the desk and the mesh of one node, all played by the test."""

    def __init__(self) -> None:
        self.applied = 5
        self.leader: str | None = "n2"
        self.taken: list[tuple[str, Any, Callable[[Answer], None]]] = []
        self.sent: list[tuple[str, Any]] = []
        self.peers = {"n2": PeerState(incarnation=1), "n3": PeerState(incarnation=1)}
        self.told: list[Answer] = []
        self.petitions = Petitions("n1", self, self, self)  # type: ignore[arg-type]

    def take(self, node: str, request: Any, answer: Callable[[Answer], None], wall: int) -> None:
        self.taken.append((node, request, answer))

    def send(self, node: str, message: Any) -> None:
        self.sent.append((node, message))

    def ask(self, **more: Any) -> int:
        """A petition; its number."""
        self.petitions.ask(GrantProducerIds(), self.told.append, 0, **more)
        if self.leader == "n1":
            return 0
        number: int = self.sent[-1][1].number
        return number

    def forward(self, number: int, start: int = 1, sender: str = "n2", request: Any = None) -> None:
        message = Forward(number=number, request=request or GrantProducerIds())
        self.petitions.take(sender, start, message, 0)


# Who asks ---


def test_an_answer_counts_once_and_once_what_it_goes_by_is_known_here() -> None:
    around = Surroundings()
    number = around.ask()
    around.petitions.on_decided(Decided(number=number, end=7, result={"first": 1}))
    around.petitions.on_decided(Decided(number=number, end=3, result={"first": 2}))
    assert not around.told
    around.applied = 7
    around.petitions.on_metadata(10)
    around.petitions.on_decided(Decided(number=number, end=3, result={"first": 3}))
    assert [each.result for each in around.told] == [{"first": 1}]


def test_another_controller_is_asked_again_and_either_may_answer() -> None:
    around = Surroundings()
    number = around.ask()
    around.leader = "n3"
    around.petitions.on_metadata(10)
    assert [node for node, _ in around.sent] == ["n2", "n3"]
    assert {message.number for _, message in around.sent} == {number}
    around.petitions.on_decided(Decided(number=number, code="not_ready", message="not any more"))
    assert not around.told
    around.petitions.on_decided(Decided(number=number, end=2, code="invalid_request", message="no"))
    assert isinstance(around.told[0].error, InvalidRequest)


def test_an_answer_that_never_comes_to_hold_is_asked_for_again() -> None:
    """An absurd answer keeps nobody from registering for ever."""
    around = Surroundings()
    number = around.ask()
    around.petitions.on_decided(Decided(number=number, end=2**62))
    for now in range(0, 30_000, 100):
        around.petitions.on_tick(now, 0)
    assert len(around.sent) > 1
    around.petitions.on_decided(Decided(number=number, end=5))
    assert len(around.told) == 1


def test_a_request_whose_time_is_up_is_told_so_once() -> None:
    around = Surroundings()
    number = around.ask(timeout=300)
    around.petitions.on_tick(300, 0)
    around.petitions.on_decided(Decided(number=number, end=1))
    (told,) = around.told
    assert isinstance(told.error, NotReady)
    assert told.error.outcome_unknown


# Who is asked ---


def test_a_start_is_not_told_what_the_one_before_it_asked() -> None:
    """Each start counts its requests from one: the answer would be taken for that of another request."""
    around = Surroundings()
    around.forward(1)
    around.peers["n2"] = PeerState(incarnation=2)
    around.taken[0][2](Answer(5))
    assert not around.sent
    around.forward(1, start=2)
    around.taken[1][2](Answer(6))
    assert [(node, message.end) for node, message in around.sent] == [("n2", 6)]


def test_a_request_that_is_repeated_is_decided_once_and_answered_each_time() -> None:
    around = Surroundings()
    around.forward(1)
    around.forward(1)
    around.forward(2)
    around.forward(1, sender="n3")
    assert len(around.taken) == 3, "n3 counts for itself"
    around.taken[0][2](Answer(5, {"first": 7}))
    around.forward(1)
    assert len(around.taken) == 3
    assert [message.result for _, message in around.sent] == [{"first": 7}] * 2


def test_what_was_not_decided_is_decided_when_it_is_repeated() -> None:
    around = Surroundings()
    around.forward(1)
    around.taken[0][2](Answer(0, error=NotReady("not the controller")))
    around.forward(1)
    assert len(around.taken) == 2


def test_what_is_remembered_of_answers_is_bounded() -> None:
    around = Surroundings()
    for number in range(5000):
        around.forward(number)
        around.taken[-1][2](Answer(5, {"first": number}))
    around.forward(4999)
    assert len(around.taken) == 5000
    assert sum(map(len, around.petitions._decided.values())) <= 1000


# In a cluster ---


@pytest.mark.parametrize("request_id", ["", "mine"])
def test_the_next_controller_knows_what_the_one_before_it_committed(request_id: str) -> None:
    """A client that gives its request no name is told of its own topic, not that there is one already."""
    mesh = Mesh()
    controller = mesh.controller
    assert controller is not None
    node, third = (each for each in mesh.cluster.up if each is not controller)
    found: list[Any] = []
    for request in (
        messages.CreateTopic(name="u", settings={"partitions": 1}, request_id=request_id),
        messages.DeleteTopic(name="t", request_id=request_id + " again" if request_id else ""),
    ):
        mesh.admin.ask(request, found.append, patience=0.0, node=node.name)
    mesh.cluster.network.cut(controller.name, node.name)
    mesh.cluster.run_until(lambda: set(third.broker.metadata.ids) == {"u"}, 5, "both are committed")
    assert not found
    controller.kill()
    mesh.cluster.run_until(lambda: len(found) == 2, 20, "both are answered")
    assert {type(each) for each in found} == {
        messages.CreateTopicReply,
        messages.DeleteTopicReply,
    }


def test_a_deletion_is_named_by_what_it_deletes() -> None:
    world = World()
    world.start()
    topic_id = world.create("t")
    world.create("u")
    reply = world.ask(messages.DeleteTopic(name="v", topic_id=topic_id, request_id="1"))
    assert reply.code == "invalid_request"
    reply = world.ask(messages.DeleteTopic(name="u", topic_id=topic_id, request_id="2"))
    assert reply.code == "invalid_request"
    assert set(world.broker.metadata.ids) == {"t", "u"}


def test_another_node_does_not_depose_a_leader() -> None:
    mesh = Mesh()
    epoch, (a, b) = mesh.state.epoch, mesh.followers
    controller = mesh.controller
    assert controller is not None
    other = a if a is not controller else b
    request = ElectAnew(topic_id=mesh.topic_id, partition=0, epoch=epoch)
    other.broker.petitions.ask(request, lambda _: None, 0)
    mesh.cluster.run(1)
    assert mesh.state.epoch == epoch


@pytest.mark.parametrize(
    "result", [{}, {"first": "x", "count": None}, {"first": -1, "count": 2**40}]
)
def test_an_answer_that_lacks_what_was_asked_for_is_an_error(result: dict[str, Any]) -> None:
    """Nobody stops for it."""
    cluster = SimulatedCluster(1)
    cluster.form()
    controller = next(each for each in cluster.up if each.broker.quorum.ready)
    other = next(each for each in cluster.up if each is not controller)
    admin = SimulatedAdmin("admin", cluster)
    found: list[Any] = []
    controller.broker.petitions.take = lambda *_: None  # type: ignore[assignment,method-assign]
    admin.ask(messages.InitProducer(), found.append, patience=5.0, node=other.name)
    admin.ask(
        messages.DeleteTopic(name="x", request_id="1"), found.append, patience=5.0, node=other.name
    )
    cluster.run(0.1)
    for number in range(20):
        controller.broker.mesh.send(other.name, Decided(number=number, result=result))
    cluster.run_until(lambda: len(found) == 2, 10, "both are answered")
    assert other.up


def test_who_left_and_is_back_is_not_fenced_by_its_leave() -> None:
    mesh = Mesh()
    controller = mesh.controller
    assert controller is not None
    follower = next(each for each in mesh.cluster.up if each is not controller)
    before = follower.broker.settings.incarnation
    follower.kill()
    mesh.cluster.run(0.2)
    follower.start()
    mesh.serves(follower)
    late = Leave(incarnation=before, stopped=True)
    follower.broker.petitions.ask(late, lambda _: None, 0)
    mesh.cluster.run(0.3)
    assert controller.broker.metadata.is_up(follower.name)
