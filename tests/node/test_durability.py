"""What was acknowledged is there after the process was killed for real, exactly once and in order."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from rawclient import RawClient, batch

from zbroker.protocol.batch import decode_records, iter_batches
from zbroker.protocol.messages import (
    ErrorReply,
    Fetch,
    FetchReply,
    InitProducer,
    Metadata,
    Offsets,
    Produce,
    ProduceReply,
)
from zbroker.testing.nodes import NodeProcess, running_node


def read_all(client: RawClient, topic: str, partition: int = 0) -> dict[int, bytes | None]:
    """Every committed record's value by its offset."""
    records: dict[int, bytes | None] = {}
    offset = 0
    while True:
        reply, bodies = client.ask_whole(Fetch(topic=topic, partition=partition, offset=offset))
        assert isinstance(reply, FetchReply), reply
        for at, header in iter_batches(bodies[0]):
            for number, record in enumerate(
                decode_records(bodies[0], at, header), header.base_offset
            ):
                if record is not None and number >= offset:
                    records[number] = record[2]
        if reply.next >= reply.high_watermark:
            return records
        assert reply.next > offset
        offset = reply.next


def test_acknowledged_records_survive_kills_and_retries_make_no_duplicates(
    node: NodeProcess,
) -> None:
    """A producer with five batches in flight retries what was not answered, byte for byte, after each kill."""
    chance = random.Random(7)
    values = [b"%06d" % number for number in range(400)]
    acknowledged: dict[int, int] = {}
    with RawClient(node.servers) as client:
        client.create_topic("t")
        producer = client.ask(InitProducer())
        batches = [
            batch(
                value,
                producer_id=producer.producer_id,
                producer_epoch=0,
                base_sequence=sequence,
            )
            for sequence, value in enumerate(values)
        ]
    kills = sorted(chance.sample(range(50, 380), 5))
    following = 0
    while following < len(batches):
        with RawClient(node.servers) as client:
            # Everything that was sent and not answered is sent again first, from the first such batch on.
            window: dict[int, int] = {}
            following = len(acknowledged)
            while len(acknowledged) < len(batches):
                while following < len(batches) and len(window) < 5:
                    window[client.send(Produce(topic="t"), batches[following])] = following
                    following += 1
                if kills and following >= kills[0]:
                    kills.pop(0)
                    node.kill()
                    node.start()
                    break
                reply, _ = client.receive()
                assert isinstance(reply, ProduceReply), reply
                acknowledged[window.pop(reply.id)] = reply.base_offset
            else:
                break
            following = len(acknowledged)
    with RawClient(node.servers) as client:
        records = read_all(client, "t")
    assert list(records.values()) == values
    assert all(records[offset] == values[number] for number, offset in acknowledged.items())


def test_topics_and_settings_survive_a_kill(node: NodeProcess) -> None:
    with RawClient(node.servers) as client:
        first = client.create_topic("kept", partitions=3, retention="1h")
        client.create_topic("gone")
        from zbroker.protocol.messages import AlterTopic, DeleteTopic

        client.ask(DeleteTopic(name="gone"))
        client.ask(AlterTopic(name="kept", settings={"retention": "2h", "partitions": 5}))
        before = client.ask(Metadata())
    node.kill()
    node.start()
    with RawClient(node.servers) as client:
        after = client.ask(Metadata())
        assert isinstance(client.produce("kept", b"v", partition=4), ProduceReply)
    assert [topic.name for topic in after.topics] == ["kept"]
    assert after.topics[0].topic_id == first
    assert after.topics[0].settings == before.topics[0].settings
    assert after.topics[0].settings["retention"] == "2h"
    assert [one.epoch for one in after.topics[0].partitions] == [
        one.epoch + 1 for one in before.topics[0].partitions
    ]


def test_producer_ids_are_never_given_twice(node: NodeProcess) -> None:
    given = []
    for _ in range(3):
        with RawClient(node.servers) as client:
            given += [client.ask(InitProducer()).producer_id for _ in range(5)]
        node.kill()
        node.start()
    assert len(set(given)) == len(given)


@pytest.mark.slow
def test_a_restart_after_a_kill_checks_only_what_is_behind_the_last_checkpoint(
    tmp_path: Path,
) -> None:
    """That is what keeps the restart with a large log short: `bench.restart` measures it."""
    settings = {"fsync": "never"}
    with running_node(tmp_path, topics=settings, log_format="json") as node:
        with RawClient(node.servers) as client:
            client.create_topic("big", partitions=2)
            body = batch(*[bytes(1000)] * 1000)
            for number in range(1080):
                reply = client.ask(Produce(topic="big", partition=number % 2), body)
                assert isinstance(reply, ProduceReply)
            before = client.ask(Offsets(topic="big")).offset
        node.kill()
        node.start()
        with RawClient(node.servers) as client:
            assert client.ask(Offsets(topic="big")).offset == before
        said = [json.loads(line) for line in node.log.read_text().splitlines()]
    checked = [one["bytes"] for one in said if one["event"] == "log_scanned"]
    assert len(checked) in (1, 2), checked
    # A checkpoint is due every 64 MiB, and waits for a flush beside which more is written.
    assert max(checked) < 540 * len(body) // 2, checked


def test_a_batch_that_a_kill_interrupted_is_not_half_there(node: NodeProcess) -> None:
    with RawClient(node.servers) as client:
        client.create_topic("t")
        for _ in range(50):
            client.send(Produce(topic="t"), batch(*[b"v" * 5000] * 100))
        reply, _ = client.receive()
        assert not isinstance(reply, ErrorReply)
        node.kill()
    node.start()
    with RawClient(node.servers) as client:
        records = read_all(client, "t")
    assert len(records) % 100 == 0
    assert len(records) >= 100
