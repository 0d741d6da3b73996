"""The examples against a real node: JavaScript writes and Python reads, and the other way round."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from queue import Queue
from typing import Any

import pytest
from rawclient import RawClient

from zbroker import Consumer, Producer
from zbroker.client.partitioner import partition_of
from zbroker.protocol.batch import decode_records, encode_batch, iter_batches
from zbroker.protocol.compression import CODECS
from zbroker.protocol.messages import Fetch, InitProducer, Produce
from zbroker.testing.nodes import NodeProcess, running_node

EXAMPLES = Path(__file__).parents[2] / "examples"
NOW = 1_790_000_000_000
PARTITIONS = 4


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    """One node for all of these tests, each with topics of its own."""
    with running_node(
        tmp_path_factory.mktemp("examples") / "node", topics={"fsync": "never"}
    ) as node:
        yield node


@pytest.fixture
def client(shared: NodeProcess) -> Iterator[RawClient]:
    with RawClient(shared.servers) as client:
        yield client


def run(command: list[Any], cwd: Path, given: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, command)), cwd=cwd, input=given, capture_output=True, text=True, timeout=60
    )


def read(client: RawClient, topic: str, partition: int) -> list[Any]:
    """All records of a partition: offset, timestamp, codec, key, value, headers."""
    found, position = [], 0
    while True:
        reply, [chunk] = client.ask_whole(Fetch(topic=topic, partition=partition, offset=position))
        for at, header in iter_batches(chunk):
            for index, record in enumerate(decode_records(chunk, at, header)):
                assert record is not None
                time = header.base_timestamp + record[0]
                found.append((header.base_offset + index, time, header.compression, *record[1:]))
        position = reply.next
        if position >= reply.high_watermark:
            return found


def write(
    client: RawClient, topic: str, records: list[tuple[bytes | None, bytes | None]], codec: int
) -> None:
    """One batch of keys and values to partition 0."""
    batch = encode_batch(
        [(i, key, value, (("n", b"%d" % i), ("n", None))) for i, (key, value) in enumerate(records)],
        base_timestamp=NOW, max_timestamp=NOW + len(records) - 1, codec=codec,
    )  # fmt: skip
    assert client.ask(Produce(topic=topic), batch).base_offset >= 0


class Lines:
    """A program that runs until told, and the lines that it prints."""

    def __init__(self, command: list[Any], cwd: Path) -> None:
        self._queue: Queue[str] = Queue()
        self._process = subprocess.Popen(
            list(map(str, command)),
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._queue.put(line.rstrip("\n"))

    def next(self) -> str:
        return self._queue.get(timeout=30)

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._thread.join()


# JavaScript ---


@pytest.mark.parametrize("compression", CODECS)
def test_javascript_produces(
    compression: str, javascript: Path, shared: NodeProcess, client: RawClient
) -> None:
    topic = f"js-{compression}"
    client.create_topic(topic, partitions=PARTITIONS)
    keyed = [(f"key-{number % 50}", f"value {number} ü") for number in range(5000)]
    lines = "".join(f"{key}\t{value}\n" for key, value in keyed)
    command = ["node", "producer.js", "--servers", shared.servers, "--compression", compression]
    done = run([*command, "--header", "unit=EUR", topic], javascript, lines)
    assert done.returncode == 0, done.stderr
    total = 0
    for partition in range(PARTITIONS):
        found = read(client, topic, partition)
        total += len(found)
        assert [offset for offset, *_ in found] == list(range(len(found)))
        assert {codec for _, _, codec, *_ in found} == {CODECS.index(compression)}
        expected = [
            (key.encode(), value.encode(), (("unit", b"EUR"),))
            for key, value in keyed
            if partition_of(key.encode(), PARTITIONS) == partition
        ]
        assert [tuple(record[3:]) for record in found] == expected
    assert total == len(keyed)
    assert "records at offset 0" in done.stdout


@pytest.mark.parametrize("codec", range(3), ids=CODECS)
def test_javascript_consumes(
    codec: int, javascript: Path, shared: NodeProcess, client: RawClient
) -> None:
    topic = f"py-{CODECS[codec]}"
    client.create_topic(topic)
    records: list[tuple[bytes | None, bytes | None]] = [
        (None, b"no key"), (b"", b"empty key"), (b"k", None), (b"k", b""), (b"k", b"\xff\x00"),
        *[(b"store-7", b"17.50 " * 30)] * 100,
    ]  # fmt: skip
    for _ in range(3):
        write(client, topic, records, codec)
    command = ["node", "consumer.js", "--servers", shared.servers, "--from", "earliest"]
    done = run([*command, "--until-end", topic], javascript)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [record["offset"] for record in found] == list(range(3 * len(records)))
    assert [(record["key"], record["value"]) for record in found[:5]] == [
        (None, "no key"), ("", "empty key"), ("k", None), ("k", ""), ("k", {"base64": "/wA="}),
    ]  # fmt: skip
    assert found[7]["timestamp"] == NOW + 7
    assert found[7]["headers"] == [["n", "7"], ["n", None]]
    assert all(record["value"] == "17.50 " * 30 for record in found[5 : len(records)])


def test_javascript_consumes_live(javascript: Path, shared: NodeProcess, client: RawClient) -> None:
    """Stored records and those that are committed while it listens, each once and in order."""
    client.create_topic("live")
    write(client, "live", [(None, b"%d" % number) for number in range(100)], 0)
    command = ["node", "consumer.js", "--servers", shared.servers, "--from", "earliest", "live"]
    with Lines(command, javascript) as consumer:
        assert [json.loads(consumer.next())["offset"] for _ in range(100)] == list(range(100))
        for round_ in range(50):
            values = [(None, b"%d" % number) for number in range(round_ % 7 + 1)]
            write(client, "live", values, round_ % 3)
        end = 100 + sum(round_ % 7 + 1 for round_ in range(50))
        found = [json.loads(consumer.next())["offset"] for _ in range(100, end)]
        assert found == list(range(100, end))


def test_javascript_survives_a_restart_of_the_node(javascript: Path, tmp_path: Path) -> None:
    """Killed with batches under way, the producer goes on; nothing is lost and nothing is there twice."""
    with running_node(tmp_path / "node") as node:
        with RawClient(node.servers) as client:
            client.create_topic("kept")
        command = ["node", "producer.js", "--servers", node.servers, "kept"]
        process = subprocess.Popen(
            command, cwd=javascript, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        lines = "".join(f"{number}\n" for number in range(20_000))
        process.stdin.write(lines)
        process.stdin.flush()
        process.stdout.readline()  # the first batch is acknowledged
        node.kill()
        node.start()
        _, problems = process.communicate(lines, timeout=60)
        assert process.returncode == 0, problems
        with RawClient(node.servers) as client:
            found = [int(record[4]) for record in read(client, "kept", 0)]
        assert found == [*range(20_000), *range(20_000)]


def test_a_javascript_consumer_outlives_its_node(javascript: Path, tmp_path: Path) -> None:
    """It goes on where it was, with every record once."""
    with running_node(tmp_path / "node") as node:
        with RawClient(node.servers) as client:
            client.create_topic("kept")
            write(client, "kept", [(None, b"before")] * 5, 0)
        command = ["node", "consumer.js", "--servers", node.servers, "--from", "earliest", "kept"]
        with Lines(command, javascript) as consumer:
            assert [json.loads(consumer.next())["offset"] for _ in range(5)] == [*range(5)]
            node.kill()
            node.start()
            with RawClient(node.servers) as client:
                write(client, "kept", [(None, b"after")] * 5, 2)
            assert [json.loads(consumer.next())["offset"] for _ in range(5)] == [*range(5, 10)]


@pytest.mark.parametrize("script", ["producer.js", "consumer.js"])
def test_javascript_says_what_is_wrong(script: str, javascript: Path, shared: NodeProcess) -> None:
    done = run(["node", script, "--servers", shared.servers, "nowhere"], javascript, "a\n")
    assert done.returncode == 1
    assert done.stderr == f"{script}: topic nowhere (unknown_topic)\n"
    assert done.stdout == ""


@pytest.mark.parametrize("compression", CODECS)
def test_both_languages_share_a_topic(
    compression: Any, javascript: Path, shared: NodeProcess, client: RawClient
) -> None:
    """The package's own clients on one side: a key has one home, and each reads what the other wrote."""
    topic = f"shared-{compression}"
    client.create_topic(topic, partitions=PARTITIONS)
    keys = [f"key-{number % 40}" for number in range(2000)]
    with Producer(shared.servers, compression=compression) as producer:
        for key in keys:
            producer.send(topic, b"from Python", key=key)
        producer.flush(timeout=30)
    command = [
        "node",
        "producer.js",
        "--servers",
        shared.servers,
        "--compression",
        compression,
        topic,
    ]
    done = run(command, javascript, "".join(f"{key}\tfrom JavaScript\n" for key in keys))
    assert done.returncode == 0, done.stderr

    with Consumer(shared.servers, topic, start="earliest", until_end=True) as consumer:
        ours = [(r.partition, r.offset, r.key.decode(), r.value.decode()) for r in consumer]
    command = [
        "node",
        "consumer.js",
        "--servers",
        shared.servers,
        "--from",
        "earliest",
        "--until-end",
    ]
    done = run([*command, topic], javascript)
    assert done.returncode == 0, done.stderr
    theirs = [
        (record["partition"], record["offset"], record["key"], record["value"])
        for record in map(json.loads, done.stdout.splitlines())
    ]
    assert sorted(ours) == sorted(theirs)
    assert len(ours) == 2 * len(keys)
    homes = {(key, partition) for partition, _, key, _ in ours}
    assert len(homes) == len({*keys}), "a key is in one partition"


# Python, without zbroker ---


def test_the_bare_client(shared: NodeProcess, client: RawClient) -> None:
    client.create_topic("bare")
    for round_ in range(2):
        done = run([sys.executable, EXAMPLES / "bare_client.py", shared.servers, "bare"], EXAMPLES)
        assert done.returncode == 0, done.stderr
        first, *lines = done.stdout.splitlines()
        assert first == f"written at offset {round_}"
        assert len(lines) == round_ + 1
        assert lines[-1] == f"{round_} b'store-7' b'17.50' [['unit', b'EUR']]"
    [first_record, _] = read(client, "bare", 0)
    assert first_record[3:] == (b"store-7", b"17.50", (("unit", b"EUR"),))
    done = run([sys.executable, EXAMPLES / "bare_client.py", shared.servers, "nowhere"], EXAMPLES)
    assert done.returncode == 1
    assert "unknown_topic" in done.stderr


def test_the_listener(shared: NodeProcess, client: RawClient) -> None:
    client.create_topic("heard")
    with Lines(
        [sys.executable, EXAMPLES / "listen.py", shared.servers, "heard"], EXAMPLES
    ) as listener:
        assert listener.next() == "heard/0/ 0 []", "a beacon"
        write(client, "heard", [(b"k", b"v")], 0)
        while (line := listener.next()).endswith("[]"):
            assert line == "heard/0/ 0 []"
        assert line == "heard/0/ 1 [[0, b'k', b'v', [['n', b'0'], ['n', None]]]]"


def test_producer_ids_are_given_once(client: RawClient) -> None:
    ids = [client.ask(InitProducer()).producer_id for _ in range(50)]
    assert len({*ids}) == 50


@pytest.mark.parametrize(("name", "most"), [("bare_client.py", 50), ("listen.py", 30)])
def test_an_example_is_short_and_alone(name: str, most: int) -> None:
    text = (EXAMPLES / name).read_text(encoding="utf-8")
    assert text.startswith('"""')
    assert len(text.splitlines()) <= most
    assert "import zbroker" not in text
    assert "from zbroker" not in text
