"""What the classes promise beyond their work: threads, forks, pickling, Ctrl-C, cancelling, late requests."""

from __future__ import annotations

import asyncio
import os
import pickle
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from fakebroker import FakeBroker
from rawclient import RawClient

import zbroker
from zbroker import (
    Admin,
    AsyncAdmin,
    AsyncConsumer,
    AsyncProducer,
    BufferFull,
    ClientClosed,
    Consumer,
    NotReady,
    Producer,
    Record,
    RecordMetadata,
    UnknownTopic,
    UnsupportedVersion,
    ZBrokerError,
)
from zbroker.protocol.messages import DeleteTopic, Hello
from zbroker.testing.nodes import NodeProcess, free_ports


@pytest.fixture
def topic(node: NodeProcess) -> NodeProcess:
    with Admin(node.servers) as admin:
        admin.create_topic("sales", partitions=2)
    return node


@pytest.fixture
def nowhere() -> str:
    """An address where nobody answers."""
    return f"127.0.0.1:{free_ports(1)}"


def read_all(servers: str) -> list[Record]:
    with Consumer(servers, "sales", start="earliest", until_end=True) as consumer:
        return list(consumer)


# Short lives ---


def test_a_producer_that_sends_once_and_closes(topic: NodeProcess) -> None:
    with Producer(topic.servers) as producer:
        deliveries = [producer.send("sales", b"1"), producer.send("sales", b"2", partition=1)]
    assert [delivery.done() for delivery in deliveries] == [True, True]
    assert {record.value for record in read_all(topic.servers)} == {b"1", b"2"}
    with pytest.raises(ClientClosed):
        producer.send("sales", b"3")


def test_a_program_that_ends_without_closing(topic: NodeProcess) -> None:
    script = f"""
        from zbroker import Producer
        producer = Producer({topic.servers!r})
        producer.send("sales", b"kept")
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=30)
    assert [record.value for record in read_all(topic.servers)] == [b"kept"]


@pytest.mark.parametrize("passing", [True, False], ids=["not ready", "for good"])
def test_what_a_node_says_to_the_hello_is_a_warning_only_where_it_stays_so(
    passing: bool, caplog: pytest.LogCaptureFixture
) -> None:
    error = NotReady("the node is starting") if passing else UnsupportedVersion("too new")

    def refuse(_broker: FakeBroker, request: object, _body: object) -> object:
        return error if isinstance(request, Hello) else None

    with FakeBroker({"sales": 1}, refuse) as broker, Producer(broker.server) as producer:
        assert producer.send("sales", b"v").result(30).offset == 0
    refusals = [record for record in caplog.records if "refuses" in record.message]
    assert bool(refusals) != passing


def test_constructors_touch_no_network(nowhere: str) -> None:
    before = threading.active_count()
    for client in (Producer(nowhere), Consumer(nowhere, "sales"), Admin(nowhere)):
        assert threading.active_count() == before
        client.close()


# Threads, forks, pickles ---


def test_a_producer_is_shared_by_threads(topic: NodeProcess) -> None:
    threads, each = 4, 2000
    with Producer(topic.servers) as producer:

        def send(number: int) -> None:
            for count in range(each):
                producer.send("sales", b"%d" % count, key=b"%d" % number)

        running = [threading.Thread(target=send, args=(number,)) for number in range(threads)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
    found: dict[bytes, list[int]] = {}
    for record in read_all(topic.servers):
        found.setdefault(record.key, []).append(int(record.value))
    assert found == {b"%d" % number: list(range(each)) for number in range(threads)}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_after_a_fork_a_client_refuses(topic: NodeProcess) -> None:
    with Producer(topic.servers) as producer, Admin(topic.servers) as admin:
        consumer = Consumer(topic.servers, "sales")
        producer.send("sales", b"1").result(10)
        consumer.poll(timeout=0)
        calls = (
            lambda: producer.send("sales", b"2"),
            lambda: producer.flush(1),
            lambda: consumer.poll(timeout=1),
            admin.topics,
        )
        pid = os.fork()
        if not pid:
            refused = 0
            for call in calls:
                try:
                    call()
                except ClientClosed as error:
                    refused += "fork" in str(error)
            os._exit(0 if refused == len(calls) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        producer.send("sales", b"3").result(10)
        consumer.close()


def test_what_pickles_and_what_says_why_not(nowhere: str) -> None:
    for client in (Producer(nowhere), Consumer(nowhere, "sales"), Admin(nowhere)):
        with pytest.raises(TypeError, match="pickle"):
            pickle.dumps(client)
        client.close()
    record = Record("sales", 0, 7, 1000, b"k", None, (("unit", b"EUR"),))
    metadata = RecordMetadata("sales", 0, 7, 1000, "flushed")
    error = UnknownTopic("there is no topic 'sails'", topic="sails")
    assert pickle.loads(pickle.dumps([record, metadata])) == [record, metadata]
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.code, copy.details) == (
        UnknownTopic, str(error), error.code, error.details,
    )  # fmt: skip


# Ctrl-C ---

BLOCKING = {
    "result": "producer = Producer(servers); producer.send('sales', b'x').result()",
    "flush": "producer = Producer(servers); producer.send('sales', b'x'); producer.flush()",
    "send": "producer = Producer(servers, buffer_bytes=1_000_000)\nwhile True: producer.send('sales', bytes(50_000))",
    "poll": "Consumer(servers, 'sales').poll(timeout=None)",
    "iteration": "next(iter(Consumer(servers, 'sales')))",
    "admin": "Admin(servers, timeout=100).topics()",
}


@pytest.mark.parametrize("call", BLOCKING)
def test_ctrl_c_interrupts_what_blocks(call: str, nowhere: str) -> None:
    script = (
        "import os, signal, threading\nfrom zbroker import *\n"
        f"servers = {nowhere!r}\n"
        "threading.Timer(0.4, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        f"try:\n{textwrap.indent(BLOCKING[call], '    ')}\n"
        "except KeyboardInterrupt: os._exit(7)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], timeout=20, check=False)
    assert done.returncode == 7


def test_ctrl_c_is_not_swallowed_by_handlers_of_others(nowhere: str) -> None:
    before = signal.getsignal(signal.SIGINT)
    with Producer(nowhere, delivery_timeout=0.2) as producer:
        producer.send("sales", b"x")
    assert signal.getsignal(signal.SIGINT) is before


# Delivery ---


def test_delivery_reports_are_one_of_the_two(topic: NodeProcess) -> None:
    heard: list[tuple[RecordMetadata | None, ZBrokerError | None, str]] = []
    done = threading.Event()

    def on_delivery(metadata: RecordMetadata | None, error: ZBrokerError | None) -> None:
        heard.append((metadata, error, threading.current_thread().name))
        if len(heard) == 2:
            done.set()
        raise RuntimeError("a report that fails harms nobody")

    with Producer(topic.servers, delivery_timeout=2) as producer:
        producer.send("sales", b"1", partition=0, on_delivery=on_delivery)
        producer.send("sails", b"2", on_delivery=on_delivery)
        assert done.wait(10)
    (kept,) = [metadata for metadata, error, _ in heard if error is None]
    (error,) = [error for metadata, error, _ in heard if metadata is None]
    assert kept is not None
    assert (kept.topic, kept.partition, kept.offset, kept.durability) == ("sales", 0, 0, "flushed")
    assert isinstance(error, UnknownTopic)
    assert not error.outcome_unknown
    assert threading.main_thread().name not in {name for *_, name in heard}


def test_a_full_buffer_raises_when_told_to(nowhere: str) -> None:
    producer = Producer(nowhere, buffer_bytes=1_000_000, block_on_full=False, delivery_timeout=0.2)
    for _ in range(2):
        producer.send("sales", bytes(400_000))
    with pytest.raises(BufferFull, match="buffer_bytes"):
        producer.send("sales", bytes(400_000))
    producer.close()


def test_values_keys_and_headers_of_every_kind(topic: NodeProcess) -> None:
    with Producer(topic.servers) as producer:
        producer.send("sales", "caf\u00e9", key="", partition=0, headers={"a": b"1"})
        producer.send("sales", None, key=b"", partition=0, headers=[("a", None), ("a", b"2")])
        producer.send("sales", b"", partition=0, timestamp=5)
    first, second, third = read_all(topic.servers)
    assert (first.key, first.value, first.headers) == (b"", "caf\u00e9".encode(), (("a", b"1"),))
    assert (second.key, second.value) == (b"", None)
    assert second.headers == (("a", None), ("a", b"2"))
    assert (third.key, third.value, third.timestamp) == (None, b"", 5)


@pytest.mark.parametrize(
    "kinds", [("plain",), ("plain", "varied"), ("keyed",), ("plain", "keyed", "rare", "listed")]
)
@pytest.mark.parametrize("compression", ["none", "lz4"])
def test_thousands_of_records_of_several_kinds(
    topic: NodeProcess, kinds: tuple[str, ...], compression: Any
) -> None:
    rng = random.Random(1)
    expected, deliveries = [], []
    began = int(time.time() * 1000)
    with Producer(topic.servers, batch_bytes=20_000, compression=compression) as producer:
        for number in range(5000):
            kind, value = rng.choice(kinds), b"%06d" % number
            key, headers = None, ()
            if kind == "plain":
                deliveries.append(producer.send("sales", value))
            elif kind == "varied":
                value = value.ljust(rng.randint(6, 300), b".")
                deliveries.append(producer.send("sales", value))
            elif kind == "keyed":
                key = b"%d" % rng.randrange(50)
                deliveries.append(producer.send("sales", value, key=key))
            elif kind == "rare":
                headers = (("h", value),)
                deliveries.append(producer.send("sales", value, headers=headers))
            else:
                producer.send_many("sales", [value])
            expected.append((value, key, headers))
    ended = int(time.time() * 1000)
    found = read_all(topic.servers)
    assert sorted(((one.value, one.key, one.headers) for one in found), key=str) == sorted(
        expected, key=str
    )
    assert all(began <= one.timestamp <= ended for one in found)
    places = {(one.partition, one.offset): one for one in found}
    for delivery in deliveries:
        metadata = delivery.result(0)
        assert places[metadata.partition, metadata.offset].timestamp == metadata.timestamp
    assert len({(d.result(0).partition, d.result(0).offset) for d in deliveries}) == len(deliveries)


@pytest.mark.parametrize("form", ["msgpack", "json"])
def test_objects_through_serializers(topic: NodeProcess, form: str) -> None:
    sent = [{"price": 17.5, "tags": ["a", None]}, [1, -2], "text", None]
    with Producer(topic.servers, serializer=form, key_serializer=form) as producer:
        for value in sent:
            producer.send("sales", value, key=["k"], partition=0)
    with Consumer(
        topic.servers,
        "sales",
        start="earliest",
        until_end=True,
        deserializer=form,
        key_deserializer=form,
    ) as consumer:
        found = list(consumer)
    assert [record.value for record in found] == sent
    assert [record.key for record in found] == [["k"]] * 4


# Late requests ---


def test_a_late_deletion_does_nothing_to_a_topic_made_again(topic: NodeProcess) -> None:
    with Admin(topic.servers) as admin, RawClient(topic.servers) as late:
        old = admin.describe_topic("sales").id
        admin.delete_topic("sales")
        admin.create_topic("sales")
        # As an Admin whose request lay in a queue would be: it names the id that it looked up.
        reply = late.ask(DeleteTopic(name="sales", topic_id=old, request_id="late"))
        assert reply.code == "topic_changed"
        assert admin.describe_topic("sales").id != old


# asyncio ---


def test_the_asyncio_faces(topic: NodeProcess) -> None:
    async def main() -> None:
        async with AsyncProducer(topic.servers) as producer, AsyncAdmin(topic.servers) as admin:
            delivery = await producer.send("sales", b"1", partition=0)
            assert (await delivery).offset == 0
            assert (await producer.send_and_wait("sales", b"2", partition=0)).offset == 1
            assert [found.name for found in await admin.topics()] == ["sales"]
            async with AsyncConsumer(topic.servers, "sales", start="earliest") as consumer:
                values = []
                async for record in consumer:
                    values.append(record.value)
                    if len(values) == 2:
                        break
                assert values == [b"1", b"2"]
                assert await consumer.poll(timeout=0.05) == []

    asyncio.run(main())


def test_cancelling_the_caller_never_cancels_the_record(topic: NodeProcess) -> None:
    async def main() -> None:
        async with AsyncProducer(topic.servers, linger_ms=200) as producer:
            waiting = asyncio.ensure_future(producer.send_and_wait("sales", b"kept", partition=0))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting

    asyncio.run(main())
    assert [record.value for record in read_all(topic.servers)] == [b"kept"]


# What importing costs ---

HEAVY = ("asyncio", "zmq.asyncio", "rich", "yaml", "click", "prometheus_client", "starlette", "lz4", "backports.zstd",
         "msgpack", "zbroker.broker", "zbroker.log", "zbroker.cluster", "zbroker.node", "zbroker.config")  # fmt: skip


def test_importing_the_package_loads_little() -> None:
    script = "import sys, zbroker\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=30
    )
    assert not set(HEAVY) & set(done.stdout.split())
    assert Path(zbroker.__file__).with_name("py.typed").exists()
