"""What a broker answers to each request, good and bad, and what it gives back."""

from __future__ import annotations

from typing import Any

import pytest
from broker.world import World, batch, rows

from zbroker.protocol.batch import MAGIC, encode_batch
from zbroker.protocol.frames import encode
from zbroker.protocol.messages import (
    AlterTopic,
    CreateTopic,
    DeleteRecords,
    DeleteTopic,
    ErrorReply,
    Fetch,
    Hello,
    InitProducer,
    Metadata,
    Offsets,
    Produce,
    Stats,
    Status,
)


@pytest.fixture
def world() -> World:
    """A broker that serves, with a topic `t` of one partition."""
    made = World()
    made.start()
    made.create()
    return made


def refused(reply: Any, code: str, *words: str) -> ErrorReply:
    """An error of that code, whose sentence names what is wrong."""
    assert isinstance(reply, ErrorReply), reply
    assert reply.code == code, reply
    for word in words:
        assert word in reply.message, (word, reply.message)
    return reply


# Records ---


def test_what_is_produced_is_pushed_and_read(world: World) -> None:
    first, second = world.produce(b"a", b"b"), world.produce(b"c")
    assert (first.base_offset, second.base_offset) == (0, 2)
    assert first.durability == "flushed"
    assert world.read() == [(0, b"a"), (1, b"b"), (2, b"c")]
    pushed = [push for push in world.transport.pushes if push[2] is not None]
    assert [subject for subject, *_ in pushed] == [b"t/0/"] * 2
    assert [row for *_, data in pushed for row in rows(data or b"")] == world.read()
    world.check_rest()


def test_nothing_is_answered_pushed_or_served_before_the_flush(world: World) -> None:
    pushes = len(world.transport.pushes)
    number = world.send(Produce(topic="t"), batch([b"a"]))
    waiting = world.send(Fetch(topic="t", offset=0, wait=5000))
    seen = 0
    while world.answer(number) is None:
        log = world.broker.partitions[next(iter(world.broker.partitions))][0].log
        assert world.answer(waiting) is None or log.flushed_offset > 0
        assert len(world.transport.pushes) == pushes or log.flushed_offset > 0
        assert world.step()
        seen += 1
    assert seen >= 2
    assert world.read() == [(0, b"a")]
    world.check_rest()


@pytest.mark.parametrize("fsync", ["always", "interval", "never"])
@pytest.mark.parametrize("acks", ["all", "leader"])
def test_a_reply_says_the_durability_that_was_reached(fsync: str, acks: Any) -> None:
    world = World()
    world.start()
    world.create(fsync=fsync)
    reply = world.produce(b"a", acks=acks)
    assert reply.durability == ("flushed" if fsync == "always" else "written")
    world.check_rest()


def test_acks_none_is_never_answered(world: World) -> None:
    world.send(Produce(topic="t", acks="none"), batch([b"a"]))
    world.asked.clear()
    world.send(Produce(topic="nowhere", acks="none"), batch([b"a"]))
    world.asked.clear()
    world.run()
    assert world.read() == [(0, b"a")]
    world.check_rest()


def test_a_fetch_at_the_end_waits_and_is_answered_empty_handed(world: World) -> None:
    world.produce(b"a")
    number = world.send(Fetch(topic="t", offset=1, wait=1000))
    world.run()
    assert world.answer(number) is None
    world.tick(1100)
    world.run()
    assert (world.answer(number).base, world.answer(number).next) == (1, 1)
    world.check_rest()


@pytest.mark.parametrize("max_bytes", [0, 1])
def test_fetches_of_no_size_get_a_batch_each(world: World, max_bytes: int) -> None:
    world.produce(b"a")
    world.produce(b"b")
    numbers = [world.send(Fetch(topic="t", offset=n, max_bytes=max_bytes)) for n in (0, 1, 0)]
    world.run()
    assert [rows(world.chunk(number)) for number in numbers] == [
        [(0, b"a")],
        [(1, b"b")],
        [(0, b"a")],
    ]
    world.check_rest()


@pytest.mark.parametrize(
    "subject", [b"", b"/", b"t", b"t//", "t/\u00b2/".encode(), b"t/" + b"9" * 5000 + b"/", b"\xff/0/", b"t/7/"]
)  # fmt: skip
def test_odd_subscriptions_are_of_no_interest(world: World, subject: bytes) -> None:
    pushes = len(world.transport.pushes)
    world.broker.on_subscribe(subject)
    assert len(world.transport.pushes) == pushes
    world.broker.on_subscribe(b"t/0/")
    assert len(world.transport.pushes) == pushes + 1
    world.check_rest()


def test_a_partition_at_rest_is_told_the_time_again_once_somebody_waits(world: World) -> None:
    ((partition,),) = [[*kept.values()] for kept in world.broker.partitions.values()]
    world.tick()
    assert partition.resting
    number = world.send(Fetch(topic="t", offset=0, wait=1000))
    assert not partition.resting
    world.tick(1100)
    world.run()
    assert world.answer(number) is not None
    world.tick()
    assert partition.resting
    world.produce(b"a")
    assert not partition.resting, "a checkpoint is due in a while"
    world.check_rest()


def test_idempotence(world: World) -> None:
    opened = world.ask(InitProducer())
    producer = (opened.producer_id, opened.producer_epoch, 0)
    first = world.produce(b"a", b"b", producer=producer)
    again = world.produce(b"a", b"b", producer=producer)
    assert (again.base_offset, again.duplicate) == (first.base_offset, True)
    hole = world.produce(b"d", producer=(producer[0], 0, 3))
    refused(hole, "out_of_order_sequence")
    assert world.produce(b"c", producer=(producer[0], 0, 2)).base_offset == 2
    assert world.produce(b"x", producer=(producer[0], 1, 0)).base_offset == 3
    refused(world.produce(b"y", producer=(producer[0], 0, 3)), "producer_fenced")
    refused(world.produce(b"z", producer=(99999, 0, 5)), "unknown_producer")
    refused(
        world.produce(b"z", producer=producer, acks="leader"), "invalid_request", "needs acks all"
    )
    assert [value for _, value in world.read()] == [b"a", b"b", b"c", b"x"]
    world.check_rest()


def test_a_duplicate_waits_for_its_original(world: World) -> None:
    producer = (world.ask(InitProducer()).producer_id, 0, 0)
    first = world.send(Produce(topic="t"), batch([b"a"], producer))
    again = world.send(Produce(topic="t"), batch([b"a"], producer))
    assert world.answer(again) is None
    world.run()
    assert world.answer(first).base_offset == world.answer(again).base_offset == 0
    assert world.read() == [(0, b"a")]


def test_offsets(world: World) -> None:
    for number in range(5):
        world.produce(b"%d" % number)
        world.tick(1000)
    ask = world.ask
    assert ask(Offsets(topic="t", at="earliest")).offset == 0
    assert ask(Offsets(topic="t", at="latest")).offset == 5
    assert ask(Offsets(topic="t", at="time", time=0)).offset == 0
    assert ask(Offsets(topic="t", at="time", time=2**50)).offset == 5
    assert ask(DeleteRecords(topic="t", before=3)).log_start == 3
    assert ask(Offsets(topic="t", at="earliest")).offset == 3
    assert [value for _, value in world.read()] == [b"3", b"4"]
    world.check_rest()


BAD = [
    ("unknown_topic", ["'nowhere'"], Produce(topic="nowhere"), batch([b"a"])),
    ("unknown_topic", ["'nowhere'"], Fetch(topic="nowhere", offset=0), None),
    ("unknown_topic", ["'nowhere'"], Stats(topic="nowhere"), None),
    ("unknown_topic", ["'nowhere'"], AlterTopic(name="nowhere", settings={"retention": "1d"}), None),
    ("unknown_topic", ["'nowhere'"], DeleteTopic(name="nowhere", request_id="1"), None),
    ("unknown_topic", ["id"], Fetch(topic_id="f" * 32, offset=0), None),
    ("topic_changed", ["made again"], Fetch(topic="t", topic_id="f" * 32, offset=0), None),
    ("unknown_partition", ["0 to 0", "7"], Produce(topic="t", partition=7), batch([b"a"])),
    ("unknown_partition", ["0 to 0", "7"], Offsets(topic="t", partition=7), None),
    ("offset_out_of_range", ["offset 5"], Fetch(topic="t", offset=5), None),
    ("offset_out_of_range", ["before 9"], DeleteRecords(topic="t", before=9), None),
    ("stale_epoch", ["epoch"], Fetch(topic="t", offset=1, epoch=99), None),
    ("too_large", ["max_batch"], Produce(topic="t"), batch([bytes(5 << 20)])),
    ("corrupt_batch", ["CRC"], Produce(topic="t"), batch([b"a"])[:-1] + b"\xff"),
    ("invalid_batch", ["header"], Produce(topic="t"), bytearray(MAGIC)),
    ("unsupported_attribute", ["attributes"], Produce(topic="t"),
     encode_batch([(0, None, b"a", ())], base_timestamp=1, max_timestamp=1, attributes=0x20)),
    ("unsupported_attribute", ["attributes"], Produce(topic="t"),
     encode_batch([(0, None, b"a", ())], base_timestamp=1, max_timestamp=1, attributes=0x10)),
    ("malformed", ["one batch"], Produce(topic="t"), None),
    ("malformed", ["none"], Fetch(topic="t", offset=0), batch([b"a"])),
    ("topic_exists", ["'t' exists"], CreateTopic(name="t", request_id="other"), None),
    ("topic_exists", ["only in case"], CreateTopic(name="T", request_id="other"), None),
    ("invalid_topic", ["'a/b'"], CreateTopic(name="a/b", request_id="1"), None),
    ("invalid_topic", ["system"], CreateTopic(name="__t", request_id="1"), None),
    ("invalid_setting", ["colour"], CreateTopic(name="u", settings={"colour": "red"}, request_id="1"), None),
    ("invalid_setting", ["one node"], CreateTopic(name="u", settings={"replicas": 3}, request_id="1"), None),
    ("invalid_setting", ["max_batch", "limits: frame"],
     CreateTopic(name="u", settings={"max_batch": "16MiB"}, request_id="1"), None),
    ("invalid_setting", ["max_batch"], AlterTopic(name="t", settings={"max_batch": "16MiB"}), None),
    ("too_large", ["limits: frame"], Produce(topic="t"), batch([bytes(9 << 20)])),
    ("invalid_setting", ["only grow"], AlterTopic(name="t", settings={"partitions": 0}), None),
    ("invalid_setting", ["named to change"], AlterTopic(name="t"), None),
    ("unsupported_version", ["version 1"], Hello(versions=[7]), None),
    ("cluster_mismatch", ["belongs to cluster"], Hello(cluster="other"), None),
]  # fmt: skip


@pytest.mark.parametrize(("code", "words", "request_", "body"), BAD)
def test_what_is_refused(
    world: World, code: str, words: list[str], request_: Any, body: bytearray | None
) -> None:
    world.produce(b"a")
    if words == ["only grow"]:
        request_ = AlterTopic(name="t", settings={"partitions": 1})
        world.ask(AlterTopic(name="t", settings={"partitions": 2}))
    reply = world.ask(request_, *([] if body is None else [body]))
    refused(reply, code, *words)
    assert world.read() == [(0, b"a")]
    world.check_rest()


HOSTILE = [
    [b""], [b"\xff"], [encode({"op": "fetch", "id": 3, "offset": "x"})], [b"", b""],
    [encode({"op": "dance", "id": 4})], [b"\x80"], [b"a"] * 9,
]  # fmt: skip


@pytest.mark.parametrize("frames", HOSTILE)
def test_frames_that_are_no_request(world: World, frames: list[bytes]) -> None:
    world.raw(*frames, client=b"hostile")
    (found,) = [
        replies for (client, _), replies in world.transport.replies.items() if client == b"hostile"
    ]
    assert len(found) == 1
    reply = found[0][0]
    assert isinstance(reply, ErrorReply)
    assert reply.code in ("malformed", "unknown_operation")
    world.check_rest()


# Topics ---


def test_topics_are_described_and_their_stats(world: World) -> None:
    world.produce(b"a")
    reply = world.ask(Metadata())
    (topic,) = reply.topics
    assert (topic.name, topic.partitions[0].leader, topic.partitions[0].isr) == (
        "t",
        "node1",
        ["node1"],
    )
    missing = world.ask(Metadata(topics=["nowhere", "t"])).topics
    assert [found.error for found in missing] == ["unknown_topic", None]
    (stats,) = world.ask(Stats(topic="t")).partitions
    assert (stats.start_offset, stats.high_watermark, stats.records_in) == (0, 1, 1)
    status = world.ask(Status())
    assert (status.topics, status.partitions, status.leading) == (1, 1, 1)
    world.check_rest()


def test_the_same_creation_twice_is_one(world: World) -> None:
    request = CreateTopic(name="u", request_id="same")
    first = world.send(request)
    second = world.send(CreateTopic(name="u", request_id="same"))
    world.run()
    assert world.answer(first).topic.topic_id == world.answer(second).topic.topic_id
    world.check_rest()


def test_the_same_deletion_twice_is_one(world: World) -> None:
    world.create("u")
    first = world.send(DeleteTopic(name="u", request_id="same"))
    second = world.send(DeleteTopic(name="u", request_id="same"))
    world.run()
    assert world.answer(first).topic_id == world.answer(second).topic_id
    world.check_rest()


def test_everyone_who_waits_hears_of_a_deletion(world: World) -> None:
    topic_id = next(iter(world.broker.partitions))
    world.produce(b"a")
    producing = world.send(Produce(topic="t"), batch([b"b"]))
    waiting = world.send(Fetch(topic="t", offset=2, wait=5000))
    reading = world.send(Fetch(topic="t", offset=0))
    finding = world.send(Offsets(topic="t", at="time", time=5))
    deleting = world.send(DeleteTopic(name="t", request_id="1"))
    world.check_rest()
    assert world.answer(deleting).topic_id == topic_id
    for number in (producing, waiting, reading, finding):
        reply = world.answer(number)
        assert not isinstance(reply, ErrorReply) or reply.code in ("unknown_topic", "not_ready")
    assert world.disk.list("topics") == []
    assert world.create() != topic_id
    assert world.read() == []
    refused(world.ask(Fetch(topic="t", topic_id=topic_id, offset=0)), "topic_changed")


@pytest.mark.parametrize("seed", range(40))
def test_a_deletion_among_reads_in_any_order(seed: int) -> None:
    world = World(seed)
    world.start()
    world.create()
    world.produce(b"a" * 2000)
    for _ in range(6):
        world.send(Fetch(topic="t", offset=0, max_bytes=100))
        world.send(Offsets(topic="t", at="time", time=5))
        for _ in range(world.rng.randrange(4)):
            world.step()
    world.send(DeleteTopic(name="t", request_id="1"))
    for _ in range(3):
        world.send(Fetch(topic="t", offset=0, max_bytes=100))
        world.send(Produce(topic="t"), batch([b"x"]))
        world.step()
    world.check_rest()
    assert world.disk.list("topics") == []


# Limits ---


def test_a_client_may_have_so_many_unanswered() -> None:
    world = World(in_flight_max=3)
    world.start()
    world.create()
    numbers = [world.send(Fetch(topic="t", offset=0, wait=5000)) for _ in range(4)]
    refused(world.answer(numbers[3]), "overloaded", "unanswered")
    assert world.ask(Status(), client=b"other").node == "node1"
    world.tick(6000)
    world.check_rest()


def test_records_that_wait_for_the_disk_are_bounded() -> None:
    world = World(memory_max=100_000)
    world.start()
    world.create()
    numbers = [world.send(Produce(topic="t"), batch([bytes(20_000)])) for _ in range(5)]
    refused(world.answer(numbers[4]), "overloaded", "limits: memory")
    world.check_rest()
    assert not isinstance(world.produce(b"a"), ErrorReply)


def test_a_stop_finishes_what_is_under_way(world: World) -> None:
    number = world.send(Produce(topic="t"), batch([b"a"]))
    waiting = world.send(Fetch(topic="t", offset=1, wait=60_000))
    world.broker.stop()
    late = world.send(Produce(topic="t"), batch([b"b"]))
    world.run()
    assert world.broker.state == "stopped"
    assert world.answer(number).durability == "flushed"
    assert not isinstance(world.answer(waiting), ErrorReply)
    refused(world.answer(late), "shutting_down")
    world.start()
    assert world.read() == [(0, b"a")]


def test_before_it_serves_it_says_so() -> None:
    world = World()
    world.start(serve=False)
    refused(world.answer(world.send(Status())), "not_ready", "starting")


def test_a_full_disk_refuses_records_and_serves_reads(world: World) -> None:
    world.produce(b"a")
    world.disk.budget = world.disk.used
    refused(world.produce(bytes(200_000)), "disk_full", "disk")
    refused(world.produce(b"b"), "disk_full")
    assert world.read() == [(0, b"a")]
    world.disk.budget = None
    world.tick(2000)
    world.run()
    assert world.produce(b"c").base_offset == 1
    world.check_rest()


def test_a_failed_fsync_stops_the_node(world: World) -> None:
    world.produce(b"a")
    world.disk.fail_flushes = 1
    number = world.send(Produce(topic="t"), batch([b"b"]))
    world.run()
    assert world.broker.state == "failed"
    reply = refused(world.answer(number), "storage_failed")
    assert reply.outcome_unknown
