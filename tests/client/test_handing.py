"""What a consumer hands over is neither lost nor counted twice: errors behind records, Ctrl-C, pauses, cancelling."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from client.group_world import Member, place, topic_id
from fakebroker import FakeBroker
from fakegroups import FakeGroups

from zbroker import AsyncConsumer, Consumer, OffsetOutOfRange, Producer, Record, ZBrokerError
from zbroker.client.aioconsumer import TURN
from zbroker.protocol.messages import Fetch, GroupOffset
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


# Pausing before a position is known ---


@pytest.mark.parametrize("resumed", ["at once", "later"])
def test_a_partition_that_is_paused_when_it_is_assigned_begins_where_it_is_committed(
    coordinator: FakeBroker, groups: FakeGroups, resumed: str
) -> None:
    fill(coordinator, 10)
    groups.offsets["t", 0] = GroupOffset(
        topic_id=coordinator.ids["t"], topic="t", partition=0, offset=5
    )

    def on_assigned(_places: Any) -> None:
        consumer.pause()
        if resumed == "at once":
            consumer.resume()

    with Consumer(
        coordinator.server, "t", group="g", start="latest", on_assigned=on_assigned
    ) as consumer:
        if resumed == "later":
            wait_for(lambda: not consumer.poll(0.05) and consumer.paused(), 10, "the pause")
            assert consumer.poll(0.2) == []
            consumer.resume()
        assert offsets(consumer.poll(10)) == [5, 6, 7, 8, 9]


def test_a_pause_before_the_first_poll_keeps_where_a_partition_begins(broker: FakeBroker) -> None:
    fill(broker, 5)
    with Consumer(broker.server, "t", start={("t", 0): 3}) as consumer:
        consumer.pause("t", 0)
        assert consumer.poll(0.2) == []
        consumer.resume("t", 0)
        assert offsets(consumer.poll(10)) == [3, 4]


def test_a_pause_before_anything_is_handed_over_loses_nothing(broker: FakeBroker) -> None:
    for partition in range(2):
        fill(broker, 3, partition=partition)
    with Consumer(broker.server, "t", start={("t", 0): 1, ("t", 1): 1}) as consumer:
        begin(consumer, 2)
        consumer.pause()
        assert consumer.poll(0.2) == []
        consumer.resume()
        found: list[Record] = []
        wait_for(lambda: found.extend(consumer.poll(0.1)) or len(found) >= 4, 10, "all records")
        assert sorted((one.partition, one.offset) for one in found) == [
            (0, 1), (0, 2), (1, 1), (1, 2),
        ]  # fmt: skip


@pytest.mark.parametrize("start", ["earliest", ("time", 0)])
@pytest.mark.parametrize("known", [False, True], ids=["not read yet", "read"])
def test_what_is_sought_during_a_pause_holds_when_it_ends(
    broker: FakeBroker, start: Any, known: bool
) -> None:
    fill(broker, 3)
    with Consumer(broker.server, "t", start="latest") as consumer:
        if known:
            consumer.poll(0)
            wait_for(lambda: consumer.position("t", 0) == 3, 10, "the start")
        consumer.pause("t", 0)
        consumer.seek("t", 0, start)
        assert consumer.poll(0.2) == []
        consumer.resume("t", 0)
        assert offsets(consumer.poll(10)) == [0, 1, 2]


def test_what_was_sought_before_a_pause_holds_when_it_ends(broker: FakeBroker) -> None:
    fill(broker, 3)
    with Consumer(broker.server, "t", start="latest") as consumer:
        consumer.seek("t", 0, "earliest")
        consumer.pause("t", 0)
        assert consumer.poll(0.2) == []
        consumer.resume("t", 0)
        assert offsets(consumer.poll(10)) == [0, 1, 2]


def test_what_was_sought_while_a_partition_was_held_earlier_does_not_hold_any_more() -> None:
    core = Member().core
    core.seek(place(0), "earliest", -1, 3)
    core.pause(place(0), 7)
    core.open(place(0), topic_id(), 5, 1, 6)
    reader = core.readers[place(0)]
    assert (reader.state, reader.start, reader.moved) == ("stopped", 5, False)
    core.resume(place(0), 8)
    assert (reader.state, reader.start, reader.generation) == ("starting", 5, 8)


# asyncio ---


@pytest.mark.parametrize("face", [Consumer, AsyncConsumer])
def test_a_consumer_that_nobody_holds_ends_its_thread(broker: FakeBroker, face: Any) -> None:
    async def open_one() -> tuple[weakref.ref[Any], Any]:
        consumer = face(broker.server, "t")
        found = consumer.poll(0)
        if face is AsyncConsumer:
            found = await found
        assert found == []
        return weakref.ref(consumer), consumer._connection._thread

    consumer, thread = asyncio.run(open_one())
    gc.collect()
    assert consumer() is None
    thread.join(10)
    assert not thread.is_alive()


class Others:
    """A task beside the consumer's, which counts its turns."""

    def __init__(self) -> None:
        self.turns = 0
        self._task = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        while True:
            self.turns += 1
            await asyncio.sleep(0)

    def stop(self) -> None:
        self._task.cancel()


def test_polls_that_find_records_let_other_tasks_run(broker: FakeBroker) -> None:
    fill(broker, 10)

    async def work() -> None:
        async with AsyncConsumer(broker.server, "t", start="earliest") as consumer:
            assert offsets(await consumer.poll(10, 1)) == [0]
            others = Others()
            for offset in range(1, 10):
                time.sleep(TURN)
                assert offsets(await consumer.poll(10, 1)) == [offset]
            assert others.turns >= 9
            others.stop()

    asyncio.run(work())


def test_an_iteration_over_many_batches_lets_other_tasks_run(broker: FakeBroker) -> None:
    fill(broker, *[1] * 10)

    async def work() -> None:
        async with AsyncConsumer(broker.server, "t", start="earliest", partitions=[0]) as consumer:
            begin(consumer, 10)
            others = Others()
            async for record in consumer:
                if record.offset == 9:
                    break
                time.sleep(TURN)
            assert others.turns >= 9
            others.stop()

    asyncio.run(work())


def test_a_poll_that_is_cancelled_while_others_run_hands_nothing_over(
    coordinator: FakeBroker, groups: FakeGroups
) -> None:
    fill(coordinator, 5)

    async def work() -> None:
        async with AsyncConsumer(coordinator.server, "t", group="g", start="earliest") as consumer:
            begin(consumer, 1)
            polling = asyncio.ensure_future(consumer.poll(10))
            await asyncio.sleep(0)
            polling.cancel()
            with pytest.raises(asyncio.CancelledError):
                await polling
            assert offsets(await consumer.poll(10)) == [0, 1, 2, 3, 4]

    asyncio.run(work())
    assert groups.committed() == {("t", 0): 5}
