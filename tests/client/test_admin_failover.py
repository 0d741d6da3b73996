"""An admin client across several nodes, in simulated time: whom it asks, and what a node that is down costs."""

from __future__ import annotations

from typing import Any

import pytest
from client.cluster_clients import SimAdmin
from client.cluster_world import SESSION, SimCluster

from zbroker.client import flows
from zbroker.client.connection import Connection, Server
from zbroker.client.exchange import Backoff, Exchange
from zbroker.client.inquiry import Inquiry
from zbroker.client.producer import ProducerMachine
from zbroker.errors import NotReady, ServersUnreachable, UnknownTopic, ZBrokerError
from zbroker.protocol import messages
from zbroker.protocol.messages import Metadata, MetadataReply
from zbroker.units import Address

A, B, C = (Address(f"10.0.1.{n}", 5550) for n in (1, 2, 3))


# Admin ---


@pytest.mark.parametrize(("state", "most"), [("down", 0.02), ("frozen", 1.2), ("dark", 1.2)])
def test_a_node_that_is_down_costs_little_and_leaves_its_columns_empty(
    state: str, most: float
) -> None:
    world = SimCluster(partitions=3)
    admin = SimAdmin(world, servers=[world.nodes["n1"].address])
    world.nodes["n2"].state = state
    begun = world.now
    found = admin.call(flows.cluster())
    assert [node.software for node in found.nodes] == ["simulated", None, "simulated"]
    assert world.now - begun < most
    begun = world.now
    topic = admin.call(flows.describe_topic("t"))
    assert [part.end_offset for part in topic.partitions] == [0, None, 0]
    assert topic.partitions[1].leader == "n2"
    assert world.now - begun < most


def test_a_partition_that_moves_meanwhile_is_asked_for_again() -> None:
    world = SimCluster()
    admin = SimAdmin(world)
    flow = flows.describe_topic("t")
    tasks = flow.send(admin._outcomes(next(flow), 10.0))
    world.move(0, "n2")
    world.run_for(0.1)
    asked_again = flow.send(admin._outcomes(tasks, 10.0))
    assert isinstance(asked_again[0].message, Metadata)
    asked_elsewhere = flow.send(admin._outcomes(asked_again, 10.0))
    with pytest.raises(StopIteration) as end:
        flow.send(admin._outcomes(asked_elsewhere, 10.0))
    assert end.value.value.partitions[0].leader == "n2"
    assert end.value.value.partitions[0].end_offset == 0


def test_a_change_goes_to_the_controller_that_another_node_names() -> None:
    world = SimCluster()
    admin = SimAdmin(world, servers=[world.nodes["n3"].address])
    admin.call(flows.topics(False))
    begun = world.now
    assert admin.call(flows.create_topic("t", {})).name == "t"
    assert world.now - begun < 0.01
    made = [
        address
        for _, address, request in admin.transmitted
        if isinstance(request, messages.CreateTopic)
    ]
    assert made == [world.nodes["n1"].address]


def test_a_change_waits_for_a_controller_to_be_elected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every node says that it is not ready; the request, with one id, is repeated until one is."""
    world = SimCluster()
    admin = SimAdmin(world)
    ready_at, handle = world.now + 0.4, world._handle
    ids = set()

    def electing(node: Any, request: Any, body: Any, answer: Any) -> None:
        if isinstance(request, messages.CreateTopic):
            ids.add(request.request_id)
            if world.now < ready_at:
                raise NotReady("a controller is being elected")
        handle(node, request, body, answer)

    monkeypatch.setattr(world, "_handle", electing)
    assert admin.call(flows.create_topic("t", {})).name == "t"
    assert world.now < ready_at + 0.15
    assert len(ids) == 1
    assert len(admin.asked(messages.CreateTopic)) < 60

    ready_at = world.now + 100
    begun = world.now
    with pytest.raises(NotReady):
        admin.call(flows.create_topic("t", {}), timeout=2.0)
    assert 1.9 < world.now - begun < 2.1


def test_a_change_that_a_frozen_node_got_goes_to_another() -> None:
    world = SimCluster()
    admin = SimAdmin(world)
    world.freeze("n1")
    world.nodes["n1"].state = "frozen"
    begun = world.now
    assert admin.call(flows.create_topic("t", {})).name == "t"
    assert world.now - begun < SESSION + 0.2


def test_what_one_node_does_not_know_yet_the_controller_does() -> None:
    world = SimCluster()
    lagging = world.nodes["n3"]
    admin = SimAdmin(world, servers=[lagging.address])
    metadata = world._metadata

    def behind(node: Any) -> MetadataReply:
        reply = metadata(node)
        if node is lagging:
            reply.topics = [messages.Topic(name="t", error="unknown_topic")]
        return reply

    world._metadata = behind  # type: ignore[method-assign]
    assert admin.call(flows.describe_topic("t")).partitions[0].end_offset == 0
    world._metadata = lambda _node: MetadataReply(  # type: ignore[method-assign]
        cluster="c", version=99, topics=[messages.Topic(name="t", error="unknown_topic")]
    )
    with pytest.raises(UnknownTopic):
        admin.call(flows.describe_topic("t"))


def test_nobody_answers() -> None:
    world = SimCluster()
    admin = SimAdmin(world)
    for node in world.nodes.values():
        node.state = "down"
    begun = world.now
    with pytest.raises(ServersUnreachable, match="refused"):
        admin.call(flows.cluster(), timeout=1.0)
    assert world.now - begun < 1.1
    assert len(admin.asked(Metadata)) < 80


# Whom to ask next ---


class Asking:
    """An inquiry of three servers, and what it leaves to be sent."""

    def __init__(self) -> None:
        self.exchange = Exchange()
        self.ended: list[tuple[Address, Any, float]] = []
        self.failed: list[Address] = []
        self.inquiry = Inquiry(
            self.exchange, Metadata(), [A, B, C], timeout=2.0,
            accepts=lambda outcome: not isinstance(outcome, ZBrokerError),
            failed=lambda address, _outcome: self.failed.append(address),
            done=lambda *ended: self.ended.append(ended),
        )  # fmt: skip
        self.inquiry.start(0.0)

    def sent(self) -> list[Address]:
        return [
            effect.address for effect in self.exchange.take_effects() if hasattr(effect, "head")
        ]

    def answer(self, address: Address, now: float) -> None:
        call = next(call for call in self.exchange.calls.values() if call.address == address)
        self.exchange.on_reply(address, MetadataReply(id=call.id), None, now)


def test_one_server_after_the_other_is_asked_while_they_keep_silent() -> None:
    asking = Asking()
    assert asking.sent() == [A]
    assert asking.inquiry.step(0.05) == 0.1
    assert asking.sent() == []
    asking.inquiry.step(0.1)
    assert asking.sent() == [B]
    asking.inquiry.step(0.16)
    assert asking.sent() == [C]
    asking.answer(B, 0.2)
    assert [(address, now) for address, _, now in asking.ended] == [(B, 0.2)]
    assert asking.failed == [A, C]
    assert not asking.exchange.calls
    assert asking.inquiry.step(9.0) is None


def test_a_server_that_is_lost_hands_the_question_on_at_once() -> None:
    asking = Asking()
    asking.exchange.on_lost(A, "gone", 0.01)
    asking.exchange.on_lost(B, "gone", 0.02)
    assert asking.sent() == [A, B, C]
    assert not asking.ended
    asking.exchange.on_lost(C, "gone", 0.03)
    assert len(asking.ended) == 1
    assert asking.failed == [A, B, C]
    assert asking.sent() == []


def test_those_that_failed_are_asked_again_while_the_last_keeps_silent() -> None:
    asking = Asking()
    asking.inquiry.step(0.1)
    asking.exchange.on_lost(B, "gone", 0.1)
    asking.exchange.on_lost(C, "gone", 0.1)
    assert asking.sent() == [A, B, C]
    assert not asking.ended
    asking.inquiry.step(0.25)
    assert asking.sent() == [B]
    asking.exchange.tick(2.0)
    asking.exchange.on_lost(B, "gone", 2.1)
    assert len(asking.ended) == 1


def test_whoever_announced_something_is_asked_while_others_are() -> None:
    asking = Asking()
    asking.inquiry.prefer(C, 0.01)
    asking.inquiry.prefer(C, 0.01)
    assert asking.sent() == [A, C]
    asking.answer(C, 0.02)
    assert asking.ended[0][0] == C


def test_pauses_are_a_share_of_the_time_that_has_passed() -> None:
    backoff = Backoff(lambda: 0.0)
    passed = 0.0
    for _ in range(40):
        pause = backoff.next()
        assert pause <= 0.006 + 0.26 * passed
        passed += pause
    assert pause == 1.0


# The thread ---


def test_what_a_server_answered_before_it_went_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reply and the end of the connection are noticed in one turn, the end first."""
    machine = ProducerMachine.__new__(ProducerMachine)
    machine.exchange = exchange = Exchange()
    connection = Connection(machine, "test")
    server = Server(A)
    outcomes: list[Any] = []
    call = exchange.request(
        A, Metadata(), lambda _call, outcome, *_: outcomes.append(outcome), now=0.0, timeout=1.0
    )

    def answered(_sock: Any, _server: Server, now: float, _most: int) -> None:
        exchange.on_reply(A, MetadataReply(id=call.id), None, now)

    class Monitor:
        events = [[b"\x00\x02" + bytes(4)]]  # noqa: RUF012

        def recv_multipart(self, _flags: int) -> list[bytes]:
            import zmq

            if not self.events:
                raise zmq.Again
            return self.events.pop()

    monkeypatch.setattr(connection, "_read_dealer", answered)
    monkeypatch.setattr(connection, "_close_dealer", lambda *_: None)
    server.dealer = object()  # type: ignore[assignment]
    connection._read_monitor(Monitor(), server, 0.1)  # type: ignore[arg-type]
    assert [type(outcome) for outcome in outcomes] == [MetadataReply]
