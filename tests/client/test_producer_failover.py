"""A producer across several nodes, in simulated time: what is kept when leaders change, and how long a change takes.

A failing seed replays: pytest tests/client/test_producer_failover.py -k "seed12]"
"""

from __future__ import annotations

import statistics
from typing import Any

import pytest
from client.cluster_clients import SimProducer
from client.cluster_world import SESSION, SimCluster

from zbroker.client.producing import WINDOW
from zbroker.errors import (
    DeliveryTimeout,
    NotReady,
    ShuttingDown,
    StorageFailed,
    ZBrokerError,
)
from zbroker.protocol import messages
from zbroker.protocol.batch import read_header

pytestmark = pytest.mark.slow  # the same decisions on every Python


def started(seed: int = 0, **options: Any) -> tuple[SimCluster, SimProducer]:
    """A cluster and a producer that has sent its first record; n1 leads partition 0."""
    producer_options = {
        name: options.pop(name)
        for name in ("acks", "request_timeout", "delivery_timeout")
        if name in options
    }
    world = SimCluster(seed, **options)
    producer = SimProducer(world, **producer_options)
    producer.send()
    producer.flush()
    world.run_for(0.01)
    return world, producer


# How long it takes ---


@pytest.mark.parametrize("seed", range(5), ids=lambda seed: f"seed{seed}")
def test_after_a_crash_it_goes_on_with_the_push(seed: int) -> None:
    world, producer = started(seed)
    producer.keep_sending()
    world.run_for(0.1)
    killed = world.now
    world.kill("n1")
    world.run_for(1.0)
    assert world.announced[0] - killed == pytest.approx(0.03)
    assert producer.gap_after(killed) < 0.03 + 0.008
    producer.check()


@pytest.mark.parametrize("seed", range(5), ids=lambda seed: f"seed{seed}")
def test_what_is_under_way_to_a_frozen_leader_goes_to_the_next_one_with_the_push(seed: int) -> None:
    world, producer = started(seed)
    producer.keep_sending()
    world.run_for(0.1)
    frozen = world.now
    world.freeze("n1")
    world.run_for(2.0)
    assert world.announced[0] - frozen == pytest.approx(SESSION + 0.03)
    assert producer.gap_after(frozen) < SESSION + 0.03 + 0.008
    world.heal("n1")
    world.run_for(1.0)
    producer.check()


def test_a_leader_that_hands_over_costs_a_few_milliseconds() -> None:
    world, producer = started()
    producer.keep_sending()
    world.run_for(0.1)
    moved = world.now
    world.move(0, "n2")
    world.run_for(0.5)
    assert producer.gap_after(moved) < 0.012
    producer.check()


@pytest.mark.parametrize("late", [0.03, 0.1, 0.4])
def test_a_leader_that_learns_of_it_last_is_tried_as_soon_as_it_says_that_it_has(
    late: float,
) -> None:
    """The others announce it before it knows; until then it refuses, which is asked for less and less often."""
    world, producer = started()
    producer.keep_sending()
    world.run_for(0.1)
    learn = world._learn

    def learns(node: Any) -> None:
        if node.name == "n2" and world.now < killed + late:
            world.at(killed + late - world.now, lambda: learn(node))
        else:
            learn(node)

    world._learn = learns  # type: ignore[method-assign]
    killed = world.now
    world.random.choice = lambda names: "n2"  # type: ignore[assignment,method-assign]
    world.kill("n1")
    world.run_for(1.0)
    assert world.seats[0].leader == "n2"
    assert producer.gap_after(killed) < max(late, 0.03) + 0.012
    producer.check()


def test_without_a_push_the_next_leader_is_found_soon() -> None:
    """Every push is lost: the metadata are asked for, often enough that the median loses 20 ms, and not more often."""
    waits, asked = [], []
    for seed in range(40):
        world, producer = started(seed)
        world.drop = 1.0
        outage = 0.02 + seed * 0.002
        world.detection = lambda outage=outage: outage  # type: ignore[misc]
        producer.keep_sending()
        world.run_for(0.1)
        killed = world.now
        world.kill("n1")
        world.run_for(1.0)
        waits.append(producer.gap_after(killed) - outage)
        asked.append(len(producer.asked(messages.Metadata, killed)))
        producer.check()
    assert statistics.median(waits) < 0.02
    assert max(waits) < 0.05
    assert max(asked) < 12


def test_while_nobody_leads_nothing_spins() -> None:
    world, producer = started()
    world.detection = lambda: 10.0
    producer.keep_sending(0.01)
    killed = world.now
    world.kill("n1")
    world.run_for(10.0)
    assert len(producer.asked(messages.Produce, killed)) < 60
    assert len(producer.asked(messages.Metadata, killed)) < 80
    world.run_for(2.0)
    assert producer.gap_after(killed) < 10.02
    producer.check()


def test_a_leader_that_restarts_in_its_place_is_found_soon() -> None:
    world, producer = started(nodes=1)
    producer.keep_sending()
    world.run_for(0.1)
    killed = world.now
    world.detection = lambda: 1e6
    world.kill("n1")
    world.run_for(0.3)
    world.heal("n1")
    world.run_for(2.0)
    assert producer.gap_after(killed) < 0.3 * 1.35
    producer.check()


@pytest.mark.parametrize(("state", "most"), [("down", 0.01), ("dark", 0.2), ("frozen", 0.2)])
def test_servers_that_do_not_answer_cost_little_at_the_start(state: str, most: float) -> None:
    world = SimCluster(nodes=3)
    world.seats = [world.seats[0].__class__("n3", 2, ("n3",))]
    world._announce()
    world.run_for(0.01)
    world.nodes["n1"].state = world.nodes["n2"].state = state
    producer = SimProducer(world)
    begun = world.now
    delivery = producer.send()
    world.run(until=begun + 5, done=delivery.done)
    assert delivery.done()
    assert world.now - begun < most + 0.01


def test_a_frozen_node_that_was_asked_last_is_not_waited_for() -> None:
    """It answered the metadata until now, and is not the leader; pushes are lost, so they have to be asked for."""
    world, producer = started()
    answered_last = producer.cluster._answerer
    frozen = next(name for name, node in world.nodes.items() if node.address == answered_last)
    leader = next(name for name in world.nodes if name != frozen)
    world.move(0, leader)
    world.run_for(0.6)
    producer.send()
    producer.flush()
    world.drop = 1.0
    world.freeze(frozen)
    world.kill(leader)
    producer.send()

    def knows() -> bool:
        known = producer.cluster.leader("t", 0)
        return known is not None and known.epoch == 3

    world.run(until=world.now + 5, done=knows)
    assert knows()
    assert world.now - world.announced[-1] < 0.15


def test_a_node_that_is_cut_off_is_not_asked_alone() -> None:
    """It answers, and knows nothing new: it leads, takes batches that are never committed, and names itself."""
    world, producer = started(request_timeout=0.2)
    world.drop = 1.0
    producer.cluster._answerer = world.nodes["n1"].address
    world.freeze("n1", "apart")
    producer.send()
    begun = world.now
    producer.flush()
    assert world.now - begun < 3.0
    producer.check()


def test_a_refusal_that_names_the_next_leader_is_followed_without_asking() -> None:
    world, producer = started()
    world.drop = 1.0
    world.run_for(0.1)
    world.move(0, "n3")
    world.run_for(0.05)
    asked = len(producer.asked(messages.Metadata))
    delivery = producer.send()
    begun = world.now
    world.run(until=begun + 1, done=delivery.done)
    assert world.now - begun < 0.005
    assert (
        len(producer.asked(messages.Metadata)) == asked
        or producer.asked(messages.Metadata)[-1] > begun
    )


def test_an_older_leader_is_not_believed() -> None:
    """A node that lags behind names the leader of an older epoch: neither its metadata nor its refusal count."""
    world, producer = started()
    lagging = world.nodes["n3"]
    lagging.state = "apart"
    world.move(0, "n2")
    world.run_for(0.05)
    leader = producer.cluster.leader("t", 0)
    assert leader is not None
    assert (leader.node, leader.epoch) == ("n2", 2)
    producer.cluster.on_not_leader("t", 0, {"leader": "n1", "epoch": 1}, world.now)
    producer.cluster.servers = (lagging.address,)
    producer.cluster.nodes = {"n3": lagging.address}
    producer.cluster.refresh(world.now)
    world.run_for(0.5)
    assert producer.cluster.leader("t", 0) == leader


# What is kept ---


def test_what_was_committed_and_not_answered_is_there_once() -> None:
    """The leader dies after the append, and after all have it; the answers are lost with it."""
    world, producer = started()
    for _ in range(WINDOW):
        producer.send(1500)
    world.run(until=world.now + 1, done=lambda: len(world.truth[0]) == 1 + WINDOW)
    for _, delivery in producer.deliveries[1:]:
        assert not delivery.done()
    world.kill("n1")
    producer.flush()
    producer.check()
    assert len(world.values(0)) == 1 + WINDOW


def test_a_leader_that_lingers_acknowledges_nothing_and_doubles_nothing() -> None:
    """It is cut off from the others, takes batches under its old epoch, and forgets them when it is back."""
    world, producer = started()
    world.freeze("n1", "apart")
    for _ in range(20):
        producer.send(1500)
    world.run_for(0.5)
    assert len(world.nodes["n1"].replicas[0].log) > 1
    assert len(producer.acknowledged) == 1
    producer.flush()
    assert world.now > 100 + SESSION
    world.heal("n1")
    world.move(0, "n2")
    world.run_for(0.3)
    world.move(0, "n1")
    for _ in range(5):
        producer.send()
    producer.flush()
    producer.check()
    assert len(world.values(0)) == 26


def test_batches_that_move_keep_their_sequences_and_their_order() -> None:
    world, producer = started()
    world.freeze("n1")
    for _ in range(12):
        producer.send(1500)
    producer.flush()
    producer.check()
    values = world.values(0)
    assert values == [value for value, _ in producer.deliveries]
    batches = [header for header, _ in world.truth[0]]
    assert [header.base_sequence for header in batches] == [
        header.base_offset for header in batches
    ]
    assert {header.producer_epoch for header in batches} == {0}


@pytest.mark.parametrize(
    "error",
    [NotReady("wait"), ShuttingDown("bye"), StorageFailed("broken")],
    ids=lambda error: error.code,
)
def test_a_node_that_refuses_is_tried_again_soon_with_one_batch_at_a_time(
    error: ZBrokerError, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, producer = started()
    until, produce = world.now + 0.2, world._produce

    def refusing(node: Any, request: Any, body: bytes, answer: Any) -> None:
        if world.now < until:
            answer(error)
        else:
            produce(node, request, body, answer)

    monkeypatch.setattr(world, "_produce", refusing)
    for _ in range(20):
        producer.send(1500)
    begun = world.now
    producer.flush()
    producer.check()
    assert world.now < until + 0.08
    refused = producer.asked(messages.Produce, begun)
    assert len([at for at in refused if at < until]) < WINDOW + 15
    assert {header.producer_epoch for header, _ in world.truth[0]} == {0}


def test_too_few_in_sync_is_waited_out() -> None:
    world, producer = started(min_insync=2)
    world.kill("n2")
    world.kill("n3")
    for _ in range(8):
        producer.send(1500)
    world.run_for(1.0)
    assert len(producer.acknowledged) == 1
    world.heal("n3")
    healed = world.now
    producer.flush()
    assert world.now - healed < 0.6
    producer.check()


def test_what_expires_at_a_frozen_leader_may_be_there_and_nothing_behind_it_is_doubled() -> None:
    world, producer = started(delivery_timeout=0.5)
    world.freeze("n1")
    for _ in range(3):
        producer.send(1500)
    world.run_for(0.3)
    for _ in range(9):
        producer.send(1500)
    world.run_for(0.4)
    world.heal("n1")
    world.run_for(1.0)
    expired = [delivery.exception(0) for _, delivery in producer.deliveries[1:4]]
    assert all(isinstance(error, DeliveryTimeout) and error.outcome_unknown for error in expired)
    producer.send()
    producer.flush()
    producer.check()
    epochs = [header.producer_epoch for header, _ in world.truth[0]]
    assert epochs == sorted(epochs)


def test_the_producer_id_is_asked_of_another_node_when_one_is_silent() -> None:
    world = SimCluster()
    producer = SimProducer(world)
    delivery = producer.send()
    world.run(until=world.now + 1, done=lambda: producer.cluster.updates > 0)
    world.nodes["n2"].state = world.nodes["n3"].state = "frozen"
    world.seats = [world.seats[0].__class__("n1", 1, ("n1",))]
    producer.cluster.failures.clear()
    producer.cluster._answerer = world.nodes["n3"].address
    begun = world.now
    world.run(until=begun + 5, done=delivery.done)
    assert delivery.done()
    assert world.now - begun < 0.5


# Histories ---


def trouble(world: SimCluster, seconds: float) -> None:
    """Whatever happens to nodes, at random, one or two of them at a time."""
    rng = world.random
    end = world.now + seconds
    while world.now < end:
        bad = [node for node in world.nodes.values() if node.state != "up"]
        draw = rng.random()
        if len(bad) < 2 and draw < 0.5:
            name = rng.choice(
                sorted(name for name, node in world.nodes.items() if node.state == "up")
            )
            fault = rng.choice(("kill", "freeze", "apart", "dark"))
            if fault == "kill":
                world.kill(name)
            else:
                world.freeze(name, "frozen" if fault == "freeze" else fault)
        elif bad and draw < 0.8:
            world.heal(rng.choice(bad).name)
        else:
            world.move(0, rng.choice(sorted(world.nodes)))
        world.run_for(rng.choice((0.01, 0.1, 0.5, 1.5)) * rng.random())
    world.drop = 0.0
    for name in world.nodes:
        world.heal(name)


def unsteady(world: SimCluster) -> None:
    """A network and metadata that are slow now and then."""
    rng = world.random
    world.drop = rng.choice((0.0, 0.3, 1.0))
    slow = rng.choice((0.0, 0.02, 0.2))
    world.delay = lambda: 0.05 * rng.random() if rng.random() < slow else 0.0005
    world.metadata_lag = lambda: rng.choice((0.001, 0.001, 0.02, 0.3))
    world.detection = lambda: rng.choice((0.01, 0.03, 0.2))


@pytest.mark.parametrize("seed", range(60), ids=lambda seed: f"seed{seed}")
def test_whoever_leads_no_record_is_lost_doubled_or_reordered(seed: int) -> None:
    world = SimCluster(seed, partitions=2, min_insync=seed % 3 or 1)
    unsteady(world)
    short = seed % 4 == 0
    producer = SimProducer(
        world, delivery_timeout=2.0 if short else 120.0, request_timeout=1.0 if seed % 2 else 10.0
    )
    stop = world.now + 4.0

    def send() -> None:
        for _ in range(world.random.randrange(1, 8)):
            producer.send(
                world.random.choice((5, 1500)), key=world.random.choice((None, b"a", b"b"))
            )
        if world.now < stop:
            world.at(world.random.random() * 0.1, send)

    send()
    trouble(world, 6.0)
    world.run_for(1.0)
    producer.flush()
    producer.check()
    if not short:
        assert all(delivery.exception(0) is None for _, delivery in producer.deliveries)
    for number, truth in enumerate(world.truth):
        assert (
            world.nodes[world.seats[number].leader or ""].replicas[number].log[: len(truth)]
            == truth
        )
        assert all(read_header(batch).crc == header.crc for header, batch in truth)
