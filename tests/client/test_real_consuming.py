"""A consumer on a real node: live, with a socket that drops, from every place, across a restart."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator

import pytest

from zbroker import Admin, Consumer, OffsetOutOfRange, Producer, Record, UnknownTopic
from zbroker.testing.nodes import NodeProcess, wait_for

PARTITIONS = 3

FULL_SPEED = """
import sys
from zbroker import Producer
servers, records, chunk = sys.argv[1], int(sys.argv[2]), 500
with Producer(servers) as producer:
    for first in range(0, records, chunk):
        values = [b"%012d" % number + b"." * 100 for number in range(first, first + chunk)]
        producer.send_many("sales", values, partition=first // chunk % 3)
"""


@contextlib.contextmanager
def full_speed(node: NodeProcess, records: int) -> Iterator[subprocess.Popen[bytes]]:
    """A producer in a process of its own, ended by the time the block is left."""
    process = subprocess.Popen([sys.executable, "-c", FULL_SPEED, node.servers, str(records)])
    try:
        yield process
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


def create(node: NodeProcess, **settings: str | int) -> None:
    with Admin(node.servers) as admin:
        admin.create_topic("sales", partitions=PARTITIONS, **settings)


def ends(node: NodeProcess) -> dict[int, int]:
    with Admin(node.servers) as admin:
        return {
            number: partition.high_watermark or 0
            for number, partition in enumerate(admin.describe_topic("sales").partitions)
        }


def take_all(consumer: Consumer, first: dict[int, int], last: dict[int, int]) -> list[Record]:
    """Everything up to the ends; each record of a partition once, in order, without a hole."""
    expected, found = dict(first), []
    while any(expected[number] < end for number, end in last.items()):
        records = consumer.poll(timeout=30, max_records=1000)
        assert records, (expected, last)
        for record in records:
            assert record.offset == expected[record.partition], record
            expected[record.partition] += 1
        found += records
    assert all(expected[number] >= end for number, end in last.items())
    return found


def next_offsets(first: dict[int, int], found: list[Record]) -> dict[int, int]:
    """Where each partition goes on."""
    return first | {record.partition: record.offset + 1 for record in found}


@pytest.mark.slow
@pytest.mark.parametrize("slow", [False, True], ids=["quick application", "slow application"])
def test_in_the_middle_of_a_full_speed_run_with_a_socket_that_drops(
    node: NodeProcess, slow: bool
) -> None:
    create(node, fsync="never")
    records = 600_000
    with full_speed(node, records) as process:
        wait_for(lambda: sum(ends(node).values()) > 20_000, 20, "the run to be under way")
        assert process.poll() is None, "the run was over before the consumer began"
        with Consumer(node.servers, "sales", start="latest", sub_rcvhwm=10) as consumer:
            consumer.poll(timeout=0)
            head = wait_for(
                lambda: consumer.position() if len(consumer.position()) == PARTITIONS else None,
                20, "the start to be known",
            )  # fmt: skip
            first = {number: head["sales", number] for number in range(PARTITIONS)}
            assert sum(first.values()) < records
            if slow:
                process.wait(60)  # the application is busy elsewhere, while pushes are dropped
                found = take_all(consumer, first, ends(node))
            else:
                found = []
                while process.poll() is None:
                    found += take_all(consumer, next_offsets(first, found), ends(node))
                found += take_all(consumer, next_offsets(first, found), ends(node))
    by_partition = defaultdict(list)
    for record in found:
        assert record.value is not None
        by_partition[record.partition].append(int(record.value[:12]))
    for numbers in by_partition.values():
        assert numbers == sorted(set(numbers))
    assert sum(first.values()) + len(found) == records


def test_a_consumer_outlives_its_node(node: NodeProcess) -> None:
    create(node)
    with (
        Producer(node.servers) as producer,
        Consumer(node.servers, "sales", start="earliest") as consumer,
    ):
        sent = 0
        for _ in range(3):
            for _ in range(50):
                producer.send("sales", b"%d" % sent, partition=0)
                sent += 1
            producer.flush(20)
            node.kill()
            node.start()
        for _ in range(50):
            producer.send("sales", b"%d" % sent, partition=0)
            sent += 1
        producer.flush(20)
        found = take_all(consumer, dict.fromkeys(range(PARTITIONS), 0), {0: sent, 1: 0, 2: 0})
    assert [record.value for record in found] == [b"%d" % number for number in range(sent)]


def test_where_a_consumer_may_start(node: NodeProcess) -> None:
    create(node)
    hour = 3_600_000
    now = int(time.time() * 1000)
    with Producer(node.servers) as producer:
        for number, age in enumerate((3 * hour, 2 * hour, hour // 2, 0)):
            producer.send("sales", b"%d" % number, partition=1, timestamp=now - age)

    def values(start: object) -> list[bytes | None]:
        with Consumer(
            node.servers,
            "sales",
            partitions=[1],
            start=start,
            until_end=True,  # type: ignore[arg-type]
        ) as consumer:
            return [record.value for record in consumer]

    assert values("earliest") == [b"0", b"1", b"2", b"3"]
    assert values("latest") == []
    assert values(2) == [b"2", b"3"]
    assert values(4) == []
    with pytest.raises(OffsetOutOfRange, match="offset 5 is not there") as caught:
        values(5)
    assert (caught.value.details["start"], caught.value.details["end"]) == (0, 4)


def test_latest_is_fixed_when_the_first_poll_begins(node: NodeProcess) -> None:
    create(node)
    with Producer(node.servers) as producer, Consumer(node.servers, "sales") as consumer:
        producer.send("sales", b"before", partition=0).result(10)
        assert consumer.poll(timeout=0) == []
        wait_for(lambda: len(consumer.position()) == PARTITIONS, 10, "the start to be known")
        producer.send("sales", b"after", partition=0).result(10)
        assert [record.value for record in consumer.poll(timeout=10)] == [b"after"]


def test_an_unknown_topic_is_named(node: NodeProcess) -> None:
    with Consumer(node.servers, "sails") as consumer, pytest.raises(UnknownTopic, match="sails"):
        consumer.poll(timeout=10)


def test_wakeup_and_close_from_another_thread(node: NodeProcess) -> None:
    create(node)
    consumer = Consumer(node.servers, "sales")
    threading.Timer(0.2, consumer.wakeup).start()
    assert consumer.poll(timeout=30) == []
    threading.Timer(0.2, consumer.close).start()
    assert list(consumer) == []


def test_a_record_counts_as_handed_over_at_the_next_call(node: NodeProcess) -> None:
    create(node)
    with Producer(node.servers) as producer:
        producer.send_many("sales", [b"a", b"b", b"c"], partition=0).result(10)
    with Consumer(node.servers, "sales", start="earliest", partitions=[0]) as consumer:
        records = iter(consumer)
        assert next(records).value == b"a"
        assert consumer.position("sales", 0) == 1
        assert [record.value for record in consumer.poll(timeout=10, max_records=1)] == [b"b"]
        assert consumer.position("sales", 0) == 2
        assert consumer.lag() == {("sales", 0): 1}


def test_pause_seek_and_resume(node: NodeProcess) -> None:
    create(node)
    with Producer(node.servers) as producer:
        producer.send_many("sales", [b"0", b"1", b"2"], partition=0)
        producer.send_many("sales", [b"x"], partition=1)
    with Consumer(node.servers, "sales", start="earliest", partitions=[0, 1]) as consumer:
        seen = []
        while len(seen) < 4:
            seen += consumer.poll(timeout=10)
        consumer.pause("sales", 0)
        consumer.seek("sales", 0, 1)
        consumer.seek("sales", 1, 0)
        assert [record.value for record in consumer.poll(timeout=10)] == [b"x"]
        assert consumer.poll(timeout=0.2) == []
        consumer.resume("sales", 0)
        seen = []
        while len(seen) < 2:
            seen += consumer.poll(timeout=10)
        assert [record.value for record in seen] == [b"1", b"2"]
