"""A producer's own thread: asked for what it cannot wait for, ended by others, failing, not there after a fork."""

from __future__ import annotations

import gc
import math
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fakebroker import FakeBroker

from zbroker import BufferFull, ClientClosed, InvalidRequest, Producer, WaitTimedOut, ZBrokerError


@pytest.fixture
def broker() -> Iterator[FakeBroker]:
    with FakeBroker({"sales": 1}) as running:
        yield running


def raised_in_callback(producer: Producer, action: Callable[[], Any]) -> BaseException | None:
    """What `action` raises on the client's thread."""
    raised: list[BaseException] = []
    done = threading.Event()

    def on_delivery(_metadata: object, _error: object) -> None:
        try:
            action()
        except ZBrokerError as error:
            raised.append(error)
        done.set()

    producer.send("sales", b"calls back", on_delivery=on_delivery)
    assert done.wait(20), "the client's thread waits for itself"
    return raised[0] if raised else None


def test_a_callback_that_finds_the_buffer_full_is_told_so(broker: FakeBroker) -> None:
    with Producer(broker.server, batch_bytes=50_000, buffer_bytes=200_000) as producer:

        def fill() -> None:
            for _ in range(20):
                producer.send("sales", bytes(40_000))

        error = raised_in_callback(producer, fill)
        assert isinstance(error, BufferFull)
        assert "client's thread" in str(error)
        producer.flush(20)
        assert producer.send("sales", b"after").result(20).offset > 1


@pytest.mark.parametrize("wait", ["result", "flush", "close", "send_many"])
def test_a_callback_does_not_wait_for_its_own_thread(wait: str, broker: FakeBroker) -> None:
    with Producer(broker.server, batch_bytes=50_000, buffer_bytes=200_000) as producer:
        actions: dict[str, Callable[[], Any]] = {
            "result": lambda: producer.send("sales", b"next").result(),
            "flush": lambda: (producer.send("sales", b"next"), producer.flush()),
            "close": lambda: (producer.send("sales", b"next"), producer.close()),
            "send_many": lambda: producer.send_many("sales", [bytes(10_000)] * 50),
        }
        error = raised_in_callback(producer, actions[wait])
        assert isinstance(error, BufferFull if wait == "send_many" else InvalidRequest)
        assert "client's thread" in str(error)
        assert producer.send("sales", b"after").result(20).offset > 1


def test_a_callback_may_look_and_may_close_when_nothing_is_on_its_way(broker: FakeBroker) -> None:
    producer = Producer(broker.server)
    error = raised_in_callback(producer, lambda: producer.send("sales", b"next").result(0))
    assert isinstance(error, WaitTimedOut)
    producer.flush(20)
    assert raised_in_callback(producer, producer.close) is None
    with pytest.raises(ClientClosed):
        producer.send("sales", b"after")


def test_a_callback_that_exits_ends_no_thread(broker: FakeBroker) -> None:
    heard: list[object] = []

    def leave(metadata: object, _error: object) -> None:
        heard.append(metadata)
        raise SystemExit

    with Producer(broker.server, linger_ms=100) as producer:
        deliveries = [producer.send("sales", b"x", on_delivery=leave) for _ in range(3)]
        producer.flush(20)
        assert producer.send("sales", b"after").result(20).offset == 3
    assert heard == [delivery.result(0) for delivery in deliveries]


def test_a_handler_that_interrupts_a_send_cannot_close(broker: FakeBroker) -> None:
    with Producer(broker.server, linger_ms=1000) as producer:
        delivery = producer.send("sales", b"x")
        with producer._accumulator.lock:  # as where a signal's handler comes between
            for wait in (producer.close, producer.flush, delivery.result):
                with pytest.raises(InvalidRequest, match="signal's handler"):
                    wait()
    assert delivery.result(0).offset == 0


def test_a_thread_that_fails_leaves_nobody_waiting(broker: FakeBroker) -> None:
    producer = Producer(broker.server, linger_ms=1000)
    assert producer.send("sales", b"first").result(20).offset == 0
    heard: list[object] = []
    sent = threading.Event()

    def fail(_now: float) -> None:
        sent.wait(20)
        raise RuntimeError("as a mistake in a step would")

    producer._connection.machine.core.step = fail  # type: ignore[attr-defined]
    deliveries = [
        producer.send("sales", b"x", on_delivery=lambda _, error: heard.append(error)),
        producer.send("sales", b"x", "key", partition=0),
        producer.send("sails", b"of a topic that is not known yet"),
    ]
    sent.set()
    for delivery in deliveries:
        with pytest.raises(ClientClosed, match="as a mistake"):
            delivery.result(20)
        error = delivery.exception()
        assert error is not None
        assert not error.outcome_unknown
    with pytest.raises(ClientClosed, match="as a mistake"):
        producer.send("sales", b"after")
    producer.flush(20)
    producer.close(20)
    assert [type(error) for error in heard] == [ClientClosed]


def test_what_is_still_open_when_a_producer_closes_fails(broker: FakeBroker) -> None:
    broker.frozen = True
    producer = Producer(broker.server)
    delivery = producer.send("sales", b"x")
    producer.close(0.1)
    error = delivery.exception(20)
    assert isinstance(error, ClientClosed)
    assert not error.outcome_unknown


def test_what_a_producer_leaves_that_nobody_keeps_fails(broker: FakeBroker) -> None:
    broker.frozen = True
    delivery = Producer(broker.server).send("sales", b"x")
    gc.collect()
    assert isinstance(delivery.exception(20), ClientClosed)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_after_a_fork_nobody_waits_for_the_parents_records(broker: FakeBroker) -> None:
    with Producer(broker.server, linger_ms=2000) as producer:
        delivery = producer.send("sales", b"x")
        pid = os.fork()
        if not pid:
            try:
                delivery.result(20)
            except ClientClosed as error:
                os._exit(0 if "fork" in str(error) else 1)
            finally:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert delivery.result(20).offset == 0


@pytest.mark.parametrize("seconds", [0, math.nan, math.inf, 1e9])
@pytest.mark.parametrize("name", ["request_timeout", "delivery_timeout"])
def test_a_timeout_is_a_number_that_can_be_waited_for(name: str, seconds: float) -> None:
    options: dict[str, Any] = {name: seconds}
    with pytest.raises(InvalidRequest, match=name):
        Producer(**options)


@pytest.mark.parametrize("linger_ms", [-1, math.nan, math.inf, 2000, 3000])
def test_a_batch_lingers_less_than_it_has_time(linger_ms: float) -> None:
    with pytest.raises(InvalidRequest, match="linger_ms"):
        Producer(linger_ms=linger_ms, delivery_timeout=2.0)
    Producer(linger_ms=1999, delivery_timeout=2.0).close()
