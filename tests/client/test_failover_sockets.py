"""Clients across several brokers over real sockets: what a thread notices of a server that dies or freezes.

How long things take exactly is tested in simulated time; here a bound is what waiting for a time-out would exceed.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from fakebroker import FakeBroker, FakeCluster

from zbroker import Admin, Consumer, Producer, RecordMetadata
from zbroker.errors import Diverged
from zbroker.protocol import messages
from zbroker.testing.nodes import free_ports, wait_for

SOON = 1.5
"""Seconds: less than any time-out of the client's."""


class Hold:
    """Requests that n1 has taken and does not answer."""

    def __init__(self) -> None:
        self.on = False
        self.held: list[Any] = []

    def __call__(self, broker: FakeBroker, request: Any, _body: Any) -> Any:
        if (
            self.on
            and broker.name == "n1"
            and isinstance(request, messages.Produce | messages.Fetch)
        ):
            self.held.append(request)
            return "drop"
        return None


def results(deliveries: list[Any]) -> list[int]:
    found: list[RecordMetadata] = [delivery.result(10) for delivery in deliveries]
    return [one.offset for one in found]


@pytest.mark.parametrize("end", ["killed", "frozen"])
def test_what_is_under_way_to_a_leader_that_is_gone_goes_to_the_next(end: str) -> None:
    hold = Hold()
    with (
        FakeCluster({"t": 1}, 3, hold) as cluster,
        Producer(cluster.servers, linger_ms=0) as producer,
    ):
        before = [producer.send("t", b"0")]
        assert results(before) == [0]
        hold.on = True
        under_way = [producer.send("t", b"1"), producer.send("t", b"2")]
        wait_for(lambda: hold.held)
        leader = cluster.brokers["n1"]
        begun = time.monotonic()
        if end == "killed":
            leader.stop()
        else:
            leader.frozen = True
        cluster.move("t", 0, "n2")
        assert results(under_way) == [1, 2]
        assert time.monotonic() - begun < SOON
        assert cluster.brokers["n2"].values("t", 0) == [b"0", b"1", b"2"]


@pytest.mark.parametrize("end", ["killed", "frozen"])
def test_a_consumer_follows(end: str) -> None:
    with (
        FakeCluster({"t": 1}, 3) as cluster,
        Producer(cluster.servers) as producer,
        Consumer(cluster.servers, "t", start="earliest") as consumer,
    ):
        producer.send("t", b"0").result(10)
        assert [record.value for record in consumer.poll(10)] == [b"0"]
        leader = cluster.brokers["n1"]
        begun = time.monotonic()
        if end == "killed":
            leader.stop()
        else:
            leader.frozen = True
        cluster.move("t", 0, "n3")
        producer.send("t", b"1").result(10)
        assert [(record.offset, record.value) for record in consumer.poll(10)] == [(1, b"1")]
        assert time.monotonic() - begun < SOON


def test_servers_that_are_dead_or_frozen_cost_little_at_the_start() -> None:
    with FakeCluster({"t": 1}, 3) as cluster:
        cluster.brokers["n1"].frozen = True
        cluster.leaders["t", 0] = "n3"
        dead = f"127.0.0.1:{free_ports(2)}"
        servers = f"{dead},{cluster.servers}"
        begun = time.monotonic()
        with Producer(servers) as producer:
            producer.send("t", b"0").result(10)
        with Consumer(servers, "t", start="earliest", until_end=True) as consumer:
            assert [record.value for record in consumer] == [b"0"]
        with Admin(servers) as admin:
            assert [topic.name for topic in admin.topics()] == ["t"]
        assert time.monotonic() - begun < 3 * SOON


def test_a_name_that_is_slow_to_look_up_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    look_up, released = socket.getaddrinfo, threading.Event()

    def slow(host: Any, *rest: Any, **options: Any) -> Any:
        if host == "slow.invalid":
            released.wait(20)
        return look_up(host, *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    try:
        with FakeBroker({"t": 1}) as broker:
            begun = time.monotonic()
            with Admin(f"slow.invalid:5550,localhost:{broker.port}") as admin:
                assert [topic.name for topic in admin.topics()] == ["t"]
            assert time.monotonic() - begun < SOON
    finally:
        released.set()


def test_a_log_that_was_rewritten_is_told_once_and_read_on_from_there() -> None:
    """n2 comes to lead without the last two records, and has taken another."""

    def check(_broker: FakeBroker, request: Any, _body: Any) -> Any:
        if (
            isinstance(request, messages.Fetch)
            and rewritten
            and request.epoch == 1
            and request.offset > 3
        ):
            return Diverged("another history", epoch=1, end=3)
        return None

    rewritten = False
    with (
        FakeCluster({"t": 1}, 2, check) as cluster,
        Producer(cluster.servers, linger_ms=0) as producer,
    ):
        for number in range(5):
            producer.send("t", b"old %d" % number).result(10)
        with Consumer(cluster.servers, "t", start="earliest") as consumer:
            found: list[Any] = []
            while len(found) < 5:
                found += consumer.poll(10)
            partition = cluster.topics["t"][0]
            del partition.batches[3:]
            partition.end, partition.producers = 3, {}
            rewritten = True
            cluster.brokers["n1"].stop()
            cluster.move("t", 0, "n2")
            producer.send("t", b"new").result(10)
            with pytest.raises(Diverged, match="offsets 3 to 4") as raised:
                consumer.poll(10)
            assert {name: raised.value.details[name] for name in ("topic", "partition", "first", "next")} == {
                "topic": "t", "partition": 0, "first": 3, "next": 5,
            }  # fmt: skip
            assert consumer.position("t", 0) == 3
            assert [(record.offset, record.value) for record in consumer.poll(10)] == [(3, b"new")]
