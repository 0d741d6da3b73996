"""What a consumer hands over is neither lost nor counted twice: errors behind records, Ctrl-C."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fakebroker import FakeBroker
from fakegroups import FakeGroups

from zbroker import AsyncConsumer, Consumer, OffsetOutOfRange, Producer, Record, ZBrokerError
from zbroker.protocol.messages import Fetch
from zbroker.testing.nodes import wait_for

Trouble = dict[int, ZBrokerError]


@pytest.fixture
def trouble() -> Trouble:
    """Offsets from which on a fetch is refused."""
    return {}


@pytest.fixture
def broker(trouble: Trouble) -> Iterator[FakeBroker]:
    def refuse(_broker: FakeBroker, request: Any, _body: Any) -> Any:
        return trouble.get(request.offset) if isinstance(request, Fetch) else None

    with FakeBroker({"t": 2}, refuse) as broker:
        yield broker


@pytest.fixture
def groups() -> FakeGroups:
    return FakeGroups({"t": 1})


@pytest.fixture
def coordinator(groups: FakeGroups) -> Iterator[FakeBroker]:
    with FakeBroker({"t": 1}, groups) as broker:
        yield broker


def fill(broker: FakeBroker, *counts: int, partition: int = 0) -> None:
    """Batches of so many records; the value is the offset."""
    first = broker.topics["t"][partition].end
    with Producer(broker.server) as producer:
        for count in counts:
            values = [b"%d" % offset for offset in range(first, first + count)]
            producer.send_many("t", values, partition=partition).result(10)
            first += count


def begin(consumer: Consumer | AsyncConsumer, items: int) -> None:
    """Begins to read, and waits until so many batches and errors wait to be handed over."""
    consumer._begin()

    def ready() -> bool:
        found = consumer._core.ready.copy()
        return sum(item.piece is not None or item.error is not None for item in found) >= items

    wait_for(ready, 10, "what is to be ready")


def offsets(records: list[Record]) -> list[int]:
    return [record.offset for record in records]


# An error behind records ---


def refuse_at_five(broker: FakeBroker, trouble: Trouble) -> None:
    fill(broker, 5)
    trouble[5] = OffsetOutOfRange("offset 5 is refused", start=0, end=5)


READING = {"start": "earliest", "partitions": [0], "on_out_of_range": "raise"}


def test_an_error_behind_a_batch_is_raised_by_the_next_poll(
    broker: FakeBroker, trouble: Trouble
) -> None:
    refuse_at_five(broker, trouble)
    with Consumer(broker.server, "t", **READING) as consumer:
        begin(consumer, 2)
        trouble.clear()
        assert offsets(consumer.poll(10)) == [0, 1, 2, 3, 4]
        with pytest.raises(OffsetOutOfRange, match="refused"):
            consumer.poll(10)
        fill(broker, 2)
        assert offsets(consumer.poll(10)) == [5, 6]


def test_an_error_behind_a_batch_ends_an_iteration_and_the_next_goes_on(
    broker: FakeBroker, trouble: Trouble
) -> None:
    refuse_at_five(broker, trouble)
    with Consumer(broker.server, "t", **READING) as consumer:
        begin(consumer, 2)
        trouble.clear()
        records = iter(consumer)
        assert [next(records).offset for _ in range(5)] == [0, 1, 2, 3, 4]
        with pytest.raises(OffsetOutOfRange, match="refused"):
            next(records)
        fill(broker, 2)
        assert next(iter(consumer)).offset == 5


def test_an_error_behind_a_batch_is_told_to_tasks(broker: FakeBroker, trouble: Trouble) -> None:
    refuse_at_five(broker, trouble)

    async def work() -> None:
        async with AsyncConsumer(broker.server, "t", **READING) as consumer:
            begin(consumer, 2)
            assert offsets(await consumer.poll(10)) == [0, 1, 2, 3, 4]
            with pytest.raises(OffsetOutOfRange, match="refused"):
                await consumer.poll(10)
            with pytest.raises(OffsetOutOfRange, match="refused"):
                await anext(aiter(consumer))
            trouble.clear()
            fill(broker, 2)
            assert (await anext(aiter(consumer))).offset == 5

    asyncio.run(work())


# Ctrl-C ---


def interrupted_at(value: bytes) -> Callable[[bytes], bytes]:
    """A deserializer that Ctrl-C interrupts, once, at a value."""
    left = [value]

    def deserialize(found: bytes) -> bytes:
        if found in left:
            left.clear()
            raise KeyboardInterrupt
        return found

    return deserialize


@pytest.mark.parametrize("before", [0, 2])
def test_ctrl_c_in_a_poll_loses_nothing(broker: FakeBroker, before: int) -> None:
    fill(broker, 5, 5, 5)
    with Consumer(
        broker.server, "t", start="earliest", partitions=[0], deserializer=interrupted_at(b"12")
    ) as consumer:
        begin(consumer, 3)
        if before:
            assert offsets(consumer.poll(10, before)) == list(range(before))
        with pytest.raises(KeyboardInterrupt):
            consumer.poll(10)
        assert consumer.position("t", 0) == before
        assert offsets(consumer.poll(10)) == list(range(before, 15))
        assert consumer.position("t", 0) == 15
        buffer = consumer._core.buffer
        assert buffer.bytes_out == buffer.bytes_in


@pytest.mark.parametrize("before", [0, 2])
def test_what_ctrl_c_kept_from_being_handed_over_is_not_committed(
    coordinator: FakeBroker, groups: FakeGroups, before: int
) -> None:
    fill(coordinator, 5, 5)
    consumer = Consumer(
        coordinator.server, "t", group="g", start="earliest", deserializer=interrupted_at(b"7")
    )
    begin(consumer, 2)
    if before:
        assert offsets(consumer.poll(10, before)) == list(range(before))
    with pytest.raises(KeyboardInterrupt):
        consumer.poll(10)
    consumer.close()
    assert groups.committed() == {("t", 0): before}
