"""A consumer across several nodes, in simulated time: every committed record once and in order, whoever leads.

A failing seed replays: pytest tests/client/test_consumer_failover.py -k "seed12]"
"""

from __future__ import annotations

import itertools

import pytest
from client.cluster_clients import SimConsumer, SimProducer
from client.cluster_world import SESSION, TOPIC_ID, SimCluster
from client.test_producer_failover import trouble, unsteady

from zbroker.client.splice import Splice
from zbroker.errors import Diverged
from zbroker.protocol import messages
from zbroker.protocol.messages import FetchReply, Push

pytestmark = pytest.mark.slow  # the same decisions on every Python


def reading(seed: int = 0, **options: int) -> tuple[SimCluster, SimProducer, SimConsumer]:
    """A consumer that is live on n1, with a few records behind it."""
    world = SimCluster(seed, **options)
    producer, consumer = SimProducer(world), SimConsumer(world)
    for _ in range(5):
        producer.send(1500)
    producer.flush()
    consumer.settle()
    world.run(until=world.now + 5, done=consumer.live)
    assert consumer.live()
    return world, producer, consumer


def longest_gap(consumer: SimConsumer, since: float) -> float:
    times = [at for at in consumer.got_at if at >= since - 0.01] + [consumer.world.now]
    return max(after - before for before, after in itertools.pairwise(times))


@pytest.mark.parametrize("seed", range(5), ids=lambda seed: f"seed{seed}")
def test_after_a_crash_it_reads_from_the_next_leader_with_the_push(seed: int) -> None:
    world, producer, consumer = reading(seed)
    producer.keep_sending()
    world.run_for(0.1)
    killed = world.now
    world.kill("n1")
    world.run_for(1.0)
    assert longest_gap(consumer, killed) < 0.03 + 0.012
    world.clients.remove(producer)
    consumer.settle()
    assert consumer.live()


def test_a_frozen_leader_is_left_with_the_push() -> None:
    world, producer, consumer = reading()
    producer.keep_sending()
    world.run_for(0.1)
    frozen = world.now
    world.freeze("n1")
    world.run_for(2.0)
    assert longest_gap(consumer, frozen) < SESSION + 0.03 + 0.012


def test_a_live_reader_is_live_again_at_the_next_leader_and_drops_the_old_subscription() -> None:
    world, producer, consumer = reading()
    world.move(0, "n2")
    world.run_for(1.0)
    assert consumer.live()
    old, new = world.nodes["n1"].address, world.nodes["n2"].address
    assert b"t/0/" not in consumer.subjects[old]
    assert b"t/0/" in consumer.subjects[new]
    fetches = len(consumer.asked(messages.Fetch))
    for _ in range(20):
        producer.send(1500)
    producer.flush()
    consumer.settle()
    assert len(consumer.asked(messages.Fetch)) == fetches


def test_while_the_next_leader_does_not_serve_yet_nothing_spins() -> None:
    """It leads, and an in-sync replica that is frozen keeps it from exposing what the one before had committed."""
    world, producer, consumer = reading()
    world.drop = 1.0
    producer.send()
    producer.flush()
    world.drop = 0.0
    world.nodes["n3"].state = "frozen"
    world.kill("n1")
    world.run_for(0.1)
    begun = world.now
    world.run_for(2.0)
    assert len(consumer.asked(messages.Fetch, begun)) < 10
    world.heal("n3")
    consumer.settle()


def test_while_nobody_leads_nothing_spins() -> None:
    world, producer, consumer = reading()
    world.detection = lambda: 10.0
    killed = world.now
    world.kill("n1")
    world.run_for(9.0)
    assert len(consumer.asked(messages.Fetch, killed)) < 50
    assert len(consumer.asked(messages.Metadata, killed)) < 80
    world.run_for(2.0)
    producer.send()
    producer.flush()
    consumer.settle()


def test_a_dead_leader_whose_end_nobody_announces_is_noticed() -> None:
    world, producer, consumer = reading()
    world.drop = 1.0
    killed = world.now
    world.kill("n1")
    producer.send()
    producer.flush()
    consumer.settle()
    assert world.now - killed < 2.7


@pytest.mark.parametrize("seed", range(60), ids=lambda seed: f"seed{seed}")
def test_whoever_leads_each_record_comes_once_and_in_order(seed: int) -> None:
    world = SimCluster(seed, partitions=2, min_insync=seed % 3 or 1)
    unsteady(world)
    producer, consumer = SimProducer(world), SimConsumer(world)
    stop = world.now + 4.0

    def send() -> None:
        for _ in range(world.random.randrange(1, 8)):
            producer.send(world.random.choice((5, 1500)))
        if world.now < stop:
            world.at(world.random.random() * 0.1, send)

    send()
    trouble(world, 6.0)
    world.run_for(1.0)
    producer.flush()
    consumer.settle()
    producer.check()
    assert not consumer.errors


# Histories that part ---


def lose(world: SimCluster, producer: SimProducer, lost: int, written: int) -> None:
    """n3 lacks `lost` batches, becomes the leader all the same, and takes `written` others."""
    world.freeze("n3")
    world.run_for(SESSION + 0.1)
    for _ in range(lost):
        producer.send(1500)
    producer.flush()
    world.run_for(0.2)
    for name in ("n1", "n2"):
        world.kill(name)
    world.run_for(0.2)
    world.nodes["n3"].state = "up"
    world.move(0, "n3", unclean=True)
    for _ in range(written):
        producer.send(1500)
    producer.flush()
    world.run_for(1.0)


@pytest.mark.parametrize("written", [0, 1, 3, 4, 5, 9])
def test_an_unclean_election_is_told_once_with_what_changed(written: int) -> None:
    world, producer, consumer = reading()
    lose(world, producer, 4, written)
    consumer.settle()
    assert [type(error) for error in consumer.errors] == [Diverged]
    details = consumer.errors[0].details
    assert (details["topic"], details["partition"]) == ("t", 0)
    assert (details["first"], details["next"]) == (5, 9)
    assert "offsets 5 to 8" in str(consumer.errors[0])
    world.run_for(1.0)
    assert consumer.live(), "what the former leader had is no reason to fetch"
    producer.send()
    producer.flush()
    consumer.settle()
    assert len(consumer.errors) == 1


def test_histories_that_parted_in_turns_are_followed_to_where_they_part() -> None:
    """Epochs of both sides interleave (KIP-279): the reader has records of epochs that the log never had."""
    world, producer, consumer = reading()
    for leader in ("n2", "n1", "n2"):
        world.move(0, leader)
        world.run_for(0.1)
        if leader == "n1":
            world.freeze("n3")
            world.run_for(SESSION + 0.1)
        producer.send(1500)
        producer.flush()
    consumer.settle()
    for name in ("n1", "n2"):
        world.kill(name)
    world.run_for(0.1)
    world.nodes["n3"].state = "up"
    world.move(0, "n3", unclean=True)
    producer.send(1500)
    producer.flush()
    consumer.settle()
    assert [(error.details["first"], error.details["next"]) for error in consumer.errors] == [
        (6, 8)
    ]


@pytest.mark.parametrize("seed", range(30), ids=lambda seed: f"seed{seed}")
def test_whatever_is_lost_what_was_handed_over_is_what_is_there(seed: int) -> None:
    """Unclean elections among all the rest: after each the application drops what it is told, and has the log."""
    world = SimCluster(seed)
    unsteady(world)
    producer, consumer = SimProducer(world, delivery_timeout=3.0), SimConsumer(world)
    rng = world.random
    for _ in range(4):
        for _ in range(rng.randrange(10)):
            producer.send(rng.choice((5, 1500)))
        trouble(world, 1.0)
        world.run_for(rng.random() * 2)
        behind = rng.choice(sorted(world.nodes))
        world.freeze(behind, "dark")
        for _ in range(rng.randrange(10)):
            producer.send(rng.choice((5, 1500)))
        world.run_for(1.5)
        world.nodes[behind].state = "up"
        world._learn(world.nodes[behind])
        world.move(0, behind, unclean=True)
        world.run_for(rng.random())
    trouble(world, 0.1)
    world.run_for(3.0)
    consumer.settle()
    assert {type(error) for error in consumer.errors} <= {Diverged}


# The splice ---


def push(epoch: int, high_watermark: int) -> Push:
    return Push(topic_id=TOPIC_ID, partition=0, epoch=epoch, high_watermark=high_watermark)


def reply(epoch: int, position: int, high_watermark: int, next_epoch: int = -1) -> FetchReply:
    return FetchReply(
        epoch=epoch,
        base=position,
        next=position,
        next_epoch=next_epoch,
        high_watermark=high_watermark,
    )


def test_a_leader_that_was_succeeded_is_not_heard() -> None:
    splice = Splice(10, 3)
    splice.on_fetch(reply(4, 10, 10), b"")
    assert not splice.on_beacon(push(3, 99))
    assert splice.head == 10
    assert splice.on_beacon(push(4, 11))
    assert splice.head == 11


def test_a_new_leader_is_heard_and_compared_first() -> None:
    splice = Splice(10, 3)
    splice.on_fetch(reply(3, 10, 10), b"")
    assert splice.trusted
    splice.on_beacon(push(4, 10))
    assert not splice.trusted
    splice.on_fetch(reply(4, 10, 10), b"")
    assert splice.trusted


@pytest.mark.parametrize(
    ("epochs", "position", "epoch", "end", "expected"),
    [
        ([(3, 5)], 10, 3, 8, (8, 3)),
        ([(3, 5)], 10, 2, 8, (5, 2)),
        ([(3, 5), (5, 7)], 10, 3, 9, (7, 3)),
        ([(3, 5), (5, 7)], 10, 4, 6, (6, 3)),
        ([(3, 5), (5, 7)], 10, 5, 9, (9, 5)),
        ([], 5, 2, 5, (5, 2)),
        ([], 5, 1, 5, (4, -1)),
        ([], 5, 2, 3, (3, -1)),
    ],
)  # fmt: skip
def test_where_two_histories_part(
    epochs: list[tuple[int, int]], position: int, epoch: int, end: int, expected: tuple[int, int]
) -> None:
    """The reader began at 5, behind a record of epoch 2."""
    splice = Splice(5, 2)
    for begun, first in epochs:
        splice._set_epoch(begun, first)
    splice.position = position
    splice.rewind(epoch, end)
    if expected == (5, 2) and position == 5:
        expected = (5, -1)  # nothing changed: there is nothing that could be compared
    assert (splice.position, splice.epoch) == expected
