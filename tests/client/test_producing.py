"""The producer's core: every rule of idempotence, in simulated time, against the broker's own producer table."""

from __future__ import annotations

import random
from typing import Any

import pytest
from client.producing_world import TOPIC, BrokerPartition, World, outcome
from hypothesis import given
from hypothesis import strategies as st

from zbroker.client.producing import WINDOW
from zbroker.client.records import RecordMetadata
from zbroker.errors import (
    DeliveryTimeout,
    DiskFull,
    InvalidBatch,
    MessageTooLarge,
    NotEnoughReplicas,
    NotLeader,
    OutOfOrderSequence,
    UnknownPartition,
    UnknownTopic,
)
from zbroker.log.producers import ProducerTable
from zbroker.protocol import messages
from zbroker.protocol.batch import read_header


def big(number: int, size: int = 1500) -> bytes:
    """A value that fills most of a batch."""
    return b"%08d" % number + bytes(size)


def is_produce(request: Any) -> bool:
    return isinstance(request, messages.Produce)


def test_records_arrive_in_order_with_their_offsets() -> None:
    world = World()
    deliveries = [world.send(b"%d" % n) for n in range(500)]
    world.run()
    assert [delivery.result(0).offset for delivery in deliveries] == list(range(500))
    assert deliveries[0].result(0).durability == "flushed"
    world.check()


def test_sequences_continue_and_at_most_a_window_is_unacknowledged() -> None:
    world = World()
    for n in range(20):
        world.send(big(n))
    most = 0
    while world.accumulator.unfinished:
        world.step()
        most = max(most, *(len(stream.unacked) for stream in world.core.streams.values()), 0)
        world.now += 0.0005
        world._arrivals()
    assert most == WINDOW
    sequences = [read_header(body).base_sequence for _, body in world.sent]
    assert sequences == list(range(20))


def test_a_lost_connection_repeats_the_same_bytes() -> None:
    world = World()
    for n in range(8):
        world.send(big(n))
    world.fate = lambda request: "deaf" if is_produce(request) else "ok"
    world.run(until=world.now + 0.5)
    world.fate = lambda _request: "ok"
    world.lose_connection()
    world.run()
    world.check()
    bodies: dict[int, set[bytes]] = {}
    for _, body in world.sent:
        bodies.setdefault(read_header(body).base_sequence, set()).add(body)
    assert all(len(versions) == 1 for versions in bodies.values())
    assert len(world.sent) > 8


def test_a_silent_node_is_asked_again_over_another_socket() -> None:
    world = World(request_timeout=1.0)
    delivery = world.send(b"x")
    world.fate = lambda request: "lost" if is_produce(request) else "ok"
    world.run(until=world.now + 2.5)
    assert not delivery.done()
    world.fate = lambda _request: "ok"
    world.run()
    assert world.connection >= 1
    assert delivery.result(0).offset == 0


@pytest.mark.parametrize("error", [NotLeader(), NotEnoughReplicas(), DiskFull()])
def test_what_passes_by_itself_is_repeated(error: Exception) -> None:
    world = World()
    refusals = iter([error] * 4)
    world.fate = lambda request: next(refusals, "ok") if is_produce(request) else "ok"
    for n in range(7):
        world.send(big(n))
    world.run()
    world.check()
    assert len(world.partitions[0].values) == 7
    assert world.core.streams[TOPIC, 0].epoch == 0


def test_a_hole_in_the_window_is_filled_in_order() -> None:
    """The first of five is lost: the others are out of order, and all go again."""
    world = World()
    lost = iter(["lost"])
    world.fate = lambda request: next(lost, "ok") if is_produce(request) else "ok"
    for n in range(12):
        world.send(big(n))
    world.run(until=world.now + 0.5)
    world.lose_connection()
    world.run()
    world.check()
    assert [value[:8] for value in world.partitions[0].values] == [b"%08d" % n for n in range(12)]
    assert world.core.streams[TOPIC, 0].epoch == 0


def test_a_partition_that_forgot_the_producer_gets_a_new_epoch_from_zero() -> None:
    world = World()
    world.send(b"before")
    world.run()
    world.partitions[0].table = ProducerTable(10**12)
    world.send(b"after")
    world.run()
    header = read_header(world.sent[-1][1])
    assert (header.producer_epoch, header.base_sequence) == (1, 0)
    assert world.partitions[0].values == [b"before", b"after"]


def test_a_log_that_lost_acknowledged_records_gets_a_new_epoch() -> None:
    world = World()
    world.send(b"kept")
    world.run()
    world.send(b"lost by the log")
    world.run()
    partition = world.partitions[0]
    partition.table.rollback(1, 0)
    partition.values.pop()
    world.deliveries.pop()
    for n in range(8):
        world.send(big(n))
    world.run()
    assert len(partition.values) == 9
    world.check()
    assert world.core.streams[TOPIC, 0].epoch == 1


def test_a_batch_that_was_never_sent_expires_for_certain() -> None:
    world = World(delivery_timeout=5.0)
    world.leader = None
    delivery = world.send(b"x")
    world.run()
    error = outcome(delivery)
    assert isinstance(error, DeliveryTimeout)
    assert error.outcome_unknown is False
    assert "never sent" in str(error)
    world.check()


def test_a_batch_that_was_sent_expires_with_its_outcome_unknown_and_the_epoch_moves_on() -> None:
    world = World(delivery_timeout=5.0)
    world.fate = lambda request: "deaf" if is_produce(request) else "ok"
    first = world.send(b"sent")
    world.run()
    error = outcome(first)
    assert isinstance(error, DeliveryTimeout)
    assert error.outcome_unknown is True
    world.fate = lambda _request: "ok"
    world.send(b"later")
    world.run()
    world.check()
    header = read_header(world.sent[-1][1])
    assert (header.producer_epoch, header.base_sequence) == (1, 0)
    assert world.partitions[0].values == [b"sent", b"later"]


@pytest.mark.parametrize("arrives", [False, True])
def test_after_an_expired_batch_the_rest_is_resolved_before_anything_new(arrives: bool) -> None:
    """One expired that may or may not be in the log; what was sent behind it is never sent under a new identity while
    it may be there."""
    world = World(delivery_timeout=5.0)
    fates = iter(["deaf" if arrives else "lost"])
    world.fate = lambda request: next(fates, "lost") if is_produce(request) else "ok"
    world.send(big(0))
    world.run(until=world.now + 4.5)
    for n in range(1, 12):
        world.send(big(n))
    world.run(until=world.now + 1.0)
    assert isinstance(outcome(world.deliveries[0][1]), DeliveryTimeout)
    world.fate = lambda _request: "ok"
    world.run()
    world.check()
    expected = [b"%08d" % n for n in range(0 if arrives else 1, 12)]
    assert [value[:8] for value in world.partitions[0].values] == expected


def test_copies_queued_at_a_node_that_stalled_are_not_doubled() -> None:
    """A and B wait in the node's queue of a former connection; A expires; B is found out of order over the new one, and
    only then the node takes the old copies: B must not go again under a new epoch."""
    world = World(delivery_timeout=5.0)
    world.fate = lambda request: "late" if is_produce(request) else "ok"
    world.send(big(0))
    world.run(until=world.now + 4.0)
    world.send(big(1))
    world.run(until=world.now + 1.5)
    assert isinstance(outcome(world.deliveries[0][1]), DeliveryTimeout)
    answers = []

    def fate(request: Any) -> Any:
        if is_produce(request):
            answers.append(request)
            if len(answers) == 1:
                return OutOfOrderSequence("as seen before the queue of the old connection")
            world.release_late()
        return "ok"

    world.fate = fate
    world.run()
    world.check()
    assert [value[:8] for value in world.partitions[0].values] == [b"%08d" % n for n in range(2)]


def test_a_batch_that_is_refused_for_good_fails_alone() -> None:
    world = World()
    refusals = iter(["ok", InvalidBatch("not like this")])
    world.fate = lambda request: next(refusals, "ok") if is_produce(request) else "ok"
    deliveries = [world.send(big(n)) for n in range(9)]
    world.run()
    world.check()
    assert isinstance(outcome(deliveries[1]), InvalidBatch)
    assert len(world.partitions[0].values) == 8
    assert world.core.streams[TOPIC, 0].epoch == 1


def test_a_batch_too_large_for_the_node_is_divided_in_the_same_sequences() -> None:
    world = World(batch_bytes=100_000)
    for partition in world.partitions:
        partition.batch_max = 5000
    deliveries = [world.send(b"%04d" % n + bytes(400)) for n in range(100)]
    stamped = world.send(b"stamped", timestamp=5, headers=(("h", None),))
    world.run()
    world.check()
    assert [delivery.result(0).offset for delivery in deliveries] == list(range(100))
    assert stamped.result(0).timestamp == 5
    assert world.core.streams[TOPIC, 0].epoch == 0


def test_a_single_record_too_large_for_the_node_fails() -> None:
    world = World(batch_bytes=100_000)
    world.partitions[0].batch_max = 500
    large, small = world.send(bytes(1000)), world.send(b"small")
    world.run()
    assert isinstance(outcome(large), MessageTooLarge)
    assert small.result(0).offset == 0
    world.check()


def test_an_explicit_timestamp_comes_through() -> None:
    world = World()
    stamps = [7, 3, 1_800_000_000_000, 0]
    deliveries = [world.send(b"%d" % stamp, timestamp=stamp) for stamp in stamps]
    world.run()
    header = read_header(world.sent[-1][1])
    assert (header.base_timestamp, header.max_timestamp) == (7, 1_800_000_000_000)
    assert [delivery.result(0).timestamp for delivery in deliveries] == stamps


def test_a_topic_that_is_not_there_is_reported_soon() -> None:
    world = World(known=False)
    delivery = world.send(b"x")
    start = world.now
    world.run()
    assert isinstance(outcome(delivery), UnknownTopic)
    assert world.now - start < 3


def test_a_topic_made_just_now_is_found() -> None:
    world = World(known=False)
    delivery = world.send(b"x")
    world.run(until=world.now + 0.5)
    world.exists = True
    world.run()
    assert delivery.result(0).offset == 0


def test_records_sent_before_the_partitions_were_known_go_where_their_keys_say() -> None:
    from zbroker.client.partitioner import partition_of

    world = World(partitions=4)
    told: list[Any] = []
    keyed = [
        (b"k%d" % n, world.send(b"v%d" % n, key=b"k%d" % n, on_delivery=lambda *a: told.append(a)))
        for n in range(50)
    ]
    placed = world.send(b"placed", partition=2)
    nowhere = world.send(b"nowhere", partition=9)
    keyless = world.send(b"keyless")
    world.run()
    for key, delivery in keyed:
        assert delivery.result(0).partition == partition_of(key, 4)
    assert placed.result(0).partition == 2
    assert isinstance(outcome(nowhere), UnknownPartition)
    assert keyless.result(0).offset >= 0
    assert len(told) == 50
    assert all(metadata is not None and error is None for metadata, error in told)
    world.check()


def test_a_topic_that_was_found_deleted_is_looked_for_again_by_the_next_send() -> None:
    world = World()
    assert isinstance(outcome_of(world, b"before"), RecordMetadata)
    world.exists = False
    world.cluster.refresh(world.now)
    while world.cluster.topics:
        world.step()
        world.now += 0.01
        world._arrivals()
    world.step()
    world.exists, world.topic_id = True, "0" * 31 + "2"
    world.partitions[0] = BrokerPartition()
    assert isinstance(outcome_of(world, b"after"), RecordMetadata)
    assert world.partitions[0].values == [b"after"]


def outcome_of(world: World, value: bytes) -> Any:
    delivery = world.send(value)
    world.run()
    return outcome(delivery)


def test_a_topic_made_again_gets_what_was_not_acknowledged() -> None:
    world = World()
    world.send(b"old")
    world.run()
    world.topic_id = "f" * 32
    world.partitions = [BrokerPartition()]
    world.deliveries.clear()
    refusals = iter([UnknownTopic("gone")])
    world.fate = lambda request: next(refusals, "ok") if is_produce(request) else "ok"
    world.send(b"new")
    world.run()
    assert world.partitions[0].values == [b"new"]
    assert world.sent[-1][0].topic_id == "f" * 32


def test_acks_leader_carries_no_identity() -> None:
    world = World(acks="leader")
    delivery = world.send(b"x")
    world.run()
    header = read_header(world.sent[0][1])
    assert (header.producer_id, header.base_sequence, header.producer_epoch) == (-1, -1, -1)
    assert delivery.result(0).offset == 0


def test_acks_none_is_done_when_the_socket_has_it() -> None:
    world = World(acks="none")
    world.fate = lambda request: "lost" if is_produce(request) else "ok"
    delivery = world.send(b"x")
    world.run()
    metadata = delivery.result(0)
    assert (metadata.offset, metadata.durability) == (-1, "none")


def test_linger_collects_and_a_full_batch_goes_at_once() -> None:
    world = World(linger=5.0)
    world.send(b"what is sent before the partitions are known does not linger")
    world.run()
    world.deliveries.clear()
    waiting = world.send(b"small")
    world.run(until=world.now + 1.0)
    assert not waiting.done()
    world.accumulator.hurry(waiting._batch)
    world.run()
    assert waiting.done()
    before = world.now
    for n in range(3):
        world.send(big(n))
    world.run(until=world.now + 1.0)
    assert [delivery.done() for _, delivery in world.deliveries] == [True, True, True, False]
    world.run()
    assert 4.9 < world.now - before < 5.2


def test_what_is_interrupted_as_it_wakes_the_client_keeps_nobody_waiting() -> None:
    world = World(linger=5.0)
    world.send(b"makes the partitions known")
    world.run()
    accumulator = world.accumulator

    def interrupt(_by: float) -> None:
        accumulator.wake = lambda _by: None
        raise KeyboardInterrupt

    accumulator.wake = interrupt
    with pytest.raises(KeyboardInterrupt):
        world.send(b"interrupted")
    waiting = accumulator.hurry_all()
    settled: list[int] = []
    for number, batch in enumerate(waiting):
        batch.when_settled(lambda number=number: settled.append(number))  # type: ignore[misc]
    world.run(until=world.now + 1.0)
    assert settled == list(range(len(waiting)))
    assert not accumulator.unfinished
    assert accumulator.room == accumulator.buffer_bytes


def test_linger_is_measured_from_a_batchs_first_record() -> None:
    world = World(linger=0.5)
    world.send(b"first")
    world.run()
    start = world.now
    delivery = world.send(b"x")
    world.run()
    assert delivery.done()
    assert 0.5 <= world.now - start < 0.6


@given(seed=st.integers(0, 2**32))
def test_whatever_the_network_does_no_record_is_lost_doubled_or_reordered(seed: int) -> None:
    rng = random.Random(seed)
    delivery_timeout = rng.choice([3.0, 8.0, 60.0])
    world = World(
        partitions=2, seed=seed, delivery_timeout=delivery_timeout, codec=rng.choice([0, 1])
    )
    trouble = rng.choice([0.05, 0.2, 0.5])
    errors = [NotLeader(), NotEnoughReplicas(), DiskFull()]

    def fate(request: Any) -> Any:
        if rng.random() >= trouble:
            return "ok"
        if is_produce(request):
            return rng.choice(["lost", "deaf", *errors])
        return rng.choice(["lost", "deaf"])

    world.fate = fate
    world.delay = lambda: rng.choice([0.001, 0.01, 0.2])
    number = 0
    for _ in range(rng.randrange(5, 25)):
        for _ in range(rng.randrange(1, 6)):
            number += 1
            world.send(big(number, rng.choice([5, 1500])), key=rng.choice([None, b"a", b"b"]))
        world.run(until=world.now + rng.random() * 2)
        if rng.random() < 0.2:
            world.lose_connection()
        if rng.random() < 0.05:
            world.leader = None
        elif rng.random() < 0.5:
            world.leader = "n1"
    trouble = 0.0
    world.leader = "n1"
    world.run()
    world.check()
    if delivery_timeout == 60.0:
        assert all(delivery.exception(0) is None for _, delivery in world.deliveries)


def test_a_batch_that_was_sent_before_its_topic_vanished_may_be_in_the_log() -> None:
    world = World()
    world.fate = lambda request: "deaf" if isinstance(request, messages.Produce) else "ok"
    delivery = world.send(b"sent")
    for _ in range(20):
        world.step()
        world.now += 0.01
        world._arrivals()
    assert world.partitions[0].values == [b"sent"]
    world.exists = False
    world.cluster.refresh(world.now)
    for _ in range(20):
        world.step()
        world.now += 0.01
        world._arrivals()
    error = outcome(delivery)
    assert isinstance(error, UnknownTopic)
    assert error.outcome_unknown
