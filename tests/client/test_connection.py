"""The client's thread: what it owes to those who wait for it, however it ends, and sockets that cannot be opened."""

from __future__ import annotations

import asyncio
import errno
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import zmq
from fakebroker import FakeBroker

from zbroker import Admin, AsyncAdmin, ClientClosed, Consumer, Producer
from zbroker.client import connection
from zbroker.client.connection import Connection, _Resolver
from zbroker.client.exchange import Exchange
from zbroker.errors import InternalError, ZBrokerError
from zbroker.protocol import messages
from zbroker.testing.nodes import wait_for


class Machine:
    """A core that has nothing to do; `on_step` is called in each step."""

    def __init__(self) -> None:
        self.exchange = Exchange()
        self.heard: list[Any] = []
        self.on_step: Callable[[], None] = lambda: None

    def step(self, _now: float) -> float | None:
        self.on_step()
        return None

    def on_push(self, *_: Any) -> None: ...

    def on_change(self, *_: Any) -> None: ...

    def after_step(self) -> None: ...

    def on_failure(self, error: ZBrokerError) -> None:
        self.heard.append(error)


def boom(*_: Any) -> Any:
    raise RuntimeError("a mistake")


# The end ---


def test_what_was_posted_before_the_end_is_called_and_what_comes_after_it_is_refused() -> None:
    machine = Machine()
    thread = Connection(machine, "test")

    def fail() -> None:
        thread.post(boom)
        thread.post(lambda _now: machine.heard.append("last"))
        boom()

    machine.on_step = fail
    thread.start()
    wait_for(lambda: len(machine.heard) == 2)
    last, error = machine.heard
    assert last == "last"
    assert isinstance(error, InternalError)
    assert thread.failure is error
    assert not thread.post(lambda _now: machine.heard.append("too late"))
    thread.stop()
    assert len(machine.heard) == 2


def test_nothing_is_posted_to_a_thread_that_never_began() -> None:
    thread = Connection(Machine(), "test")
    thread.stop()
    thread.start()
    assert not thread.started
    assert not thread.post(boom)
    assert isinstance(thread.failure, ClientClosed)


def test_an_admin_whose_thread_has_failed_says_so_at_once() -> None:
    with FakeBroker({"t": 1}) as broker, Admin(broker.server) as admin:
        assert admin.topics()
        admin._connection.machine.step = boom  # type: ignore[method-assign]
        begun = time.monotonic()
        for _ in range(2):
            with pytest.raises(InternalError, match="a mistake"):
                admin.topics()
        assert time.monotonic() - begun < 5


def test_an_asyncio_admin_whose_thread_has_failed_says_so_at_once() -> None:
    async def work(server: str) -> None:
        async with AsyncAdmin(server) as admin:
            assert await admin.topics()
            admin._connection.machine.step = boom  # type: ignore[method-assign]
            for _ in range(2):
                with pytest.raises(InternalError, match="a mistake"):
                    await asyncio.wait_for(admin.topics(), 5)

    with FakeBroker({"t": 1}) as broker:
        asyncio.run(work(broker.server))


def test_a_call_that_comes_as_the_client_is_closed_is_answered() -> None:
    with FakeBroker({"t": 1}) as broker:
        admin = Admin(broker.server)
        admin.topics()
        admin._connection.stop()
        with pytest.raises(ClientClosed):
            admin.topics()
        admin.close()


# The beginning ---


def test_a_thread_that_cannot_be_started_is_started_by_the_next_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    thread = Connection(Machine(), "test")
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", boom)
        with pytest.raises(RuntimeError):
            thread.start()
    assert not thread.started
    called = threading.Event()
    thread.start()
    thread.post(lambda _now: called.set())
    assert called.wait(5)
    thread.stop()


def test_a_name_is_looked_up_without_a_thread_where_there_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(threading.Thread, "start", boom)
    found: list[list[str] | str] = []
    _Resolver("test").ask("localhost", found.append)
    assert "127.0.0.1" in found[0]


# Sockets that cannot be opened ---


def scarce(monkeypatch: pytest.MonkeyPatch, kind: int, failures: float) -> list[int]:
    """Has contexts fail to open so many sockets of a kind; the list gets one entry for each that was asked for."""
    asked: list[int] = []

    class Scarce(zmq.Context):  # type: ignore[type-arg]
        def socket(self, socket_type: int, *args: Any, **options: Any) -> Any:
            if socket_type == kind:
                asked.append(socket_type)
                if len(asked) <= failures:
                    raise zmq.ZMQError(errno.EMFILE)
            return super().socket(socket_type, *args, **options)

    monkeypatch.setattr(zmq, "Context", Scarce)
    return asked


@pytest.mark.parametrize("kind", [zmq.DEALER, zmq.PAIR, zmq.SUB])
def test_a_socket_that_cannot_be_opened_is_tried_again(
    kind: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FakeBroker({"t": 1}) as broker:
        monkeypatch.setattr(connection, "BEACON_PATIENCE", 0.2)
        asked = scarce(monkeypatch, kind, 2)
        with Producer(broker.server, linger_ms=0) as producer:
            assert producer.send("t", b"v").result(10).offset == 0
            wait_for(lambda: len(asked) > 2, 15, "a socket to be opened")
            assert producer.send("t", b"w").result(10).offset == 1


def test_a_socket_that_can_never_be_opened_is_tried_ever_less_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = scarce(monkeypatch, zmq.DEALER, float("inf"))
    with Admin("127.0.0.1:1", timeout=1) as admin:
        with pytest.raises(ZBrokerError, match="no connection can be opened"):
            admin.topics()
        assert 1 < len(asked) < 100


def test_an_address_that_is_none_is_a_node_that_cannot_be_reached() -> None:
    """Its host looks like an IPv6 address, and ZeroMQ refuses it."""
    answers = 0

    def lie(broker: FakeBroker, request: Any, _body: Any) -> Any:
        nonlocal answers
        if not isinstance(request, messages.Metadata) or answers >= 3:
            return None
        answers += 1
        reply = broker._metadata(request)
        reply.nodes[0].host = "a:b/c"
        return reply

    with FakeBroker({"t": 1}, lie) as broker:
        with Producer(broker.server, linger_ms=0) as producer:
            assert producer.send("t", b"v").result(10).offset == 0
        assert answers == 3
        answers = 0
        with Consumer(broker.server, "t", start="earliest") as consumer:
            assert [record.value for record in consumer.poll(10)] == [b"v"]
        assert answers == 3


# Sending without acknowledgements ---


def test_batches_that_nobody_acknowledges_go_one_after_the_other_without_a_pause() -> None:
    with (
        FakeBroker({"t": 1}) as broker,
        Producer(broker.server, acks="none", batch_bytes=1000) as producer,
    ):
        producer.send("t", b"first").result(10)
        begun = time.monotonic()
        for _ in range(30):
            producer.send("t", bytes(900), partition=0)
        producer.flush(5)
        assert time.monotonic() - begun < 1
        wait_for(lambda: len(broker.values("t", 0)) == 31)
