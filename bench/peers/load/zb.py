"""zbroker's own clients under load; see `bench.load` for the words. The public face alone."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from bench import load
from bench.load import Told
from zbroker import Admin, AsyncConsumer, AsyncProducer, Consumer, Producer, ZBrokerError

POLL = 5000


def names(told: Told) -> list[str]:
    """The topics that are meant: one, or `topics` of them."""
    count = told.get("topics", 1)
    return [f"{told.topic}-{n}" for n in range(count)] if count > 1 else [told.topic]


def producer(told: Told, **options: Any) -> Producer:
    """As told, and everything else at its default."""
    if told.get("linger", -1) >= 0:
        options["linger_ms"] = told.linger
    return Producer(told.servers, compression=told.get("compression", "none"), **options)


def produce(told: Told) -> dict[str, Any]:
    """Sends for so many seconds, and waits for every acknowledgement."""
    if told.client.startswith("Async"):
        return asyncio.run(produce_async(told))
    values, topics = load.ring(told), names(told)
    with producer(told) as client:
        for topic in topics:
            warm = client.send(topic, load.warm_value(told))
        client.flush(60)
        warm.result(0)
        once = _sender(client, told, topics, values)
        load.gate()
        start = time.monotonic_ns()
        rounds = load.repeated(told.seconds_ms / 1000, once)
        client.flush()
        end = time.monotonic_ns()
    return {"start": start, "end": end, "records": rounds * len(values)}


def _sender(
    client: Producer, told: Told, topics: list[str], values: list[bytes]
) -> Callable[[], Any]:
    """What sends the ring once."""
    if told.client == "send_many":
        assert len(topics) == 1
        return lambda: client.send_many(topics[0], values)
    send = client.send

    def once() -> None:
        topic = topics[0]
        for value in values:
            send(topic, value)

    def once_round() -> None:
        count = len(topics)
        for number, value in enumerate(values):
            send(topics[number % count], value)

    return once if len(topics) == 1 else once_round


async def produce_async(told: Told) -> dict[str, Any]:
    """The same through the asyncio face."""
    values, topic, rounds = load.ring(told), told.topic, 0
    async with AsyncProducer(told.servers) as client:
        await client.send_and_wait(topic, load.warm_value(told))
        load.gate()
        start = time.monotonic_ns()
        while time.monotonic_ns() - start < told.seconds_ms * 1_000_000 or not rounds:
            if told.client == "AsyncProducer.send_many":
                await client.send_many(topic, values)
            else:
                for value in values:
                    await client.send(topic, value)
            rounds += 1
        await client.flush()
        end = time.monotonic_ns()
    return {"start": start, "end": end, "records": rounds * len(values)}


def pieces_of(records: Sequence[Any]) -> Iterator[tuple[Any, list[bytes]]]:
    """Records of one poll, by partition."""
    first, last = records[0], records[-1]
    if first.partition == last.partition and first.topic == last.topic:
        yield (first.topic, first.partition), [record.value for record in records]
        return
    lanes: dict[tuple[str, int], list[bytes]] = {}
    for record in records:
        lanes.setdefault((record.topic, record.partition), []).append(record.value)
    yield from lanes.items()


def light_pieces(records: Sequence[Any]) -> Iterator[tuple[Any, Sequence[bytes]]]:
    """The same for `Ends`, which looks at the first and the last."""
    yield None, _Values(records)


class _Values(Sequence[bytes]):
    """The records' values, taken only where somebody looks."""

    def __init__(self, records: Sequence[Any]) -> None:
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, at: Any) -> Any:
        return self._records[at].value


def consume(told: Told) -> dict[str, Any]:
    """Reads what is stored."""
    if told.client == "AsyncConsumer":
        return asyncio.run(consume_async(told))
    split = pieces_of if told.get("check", "ends") == "all" else light_pieces

    def pieces() -> Iterator[tuple[Any, Sequence[bytes]]]:
        with Consumer(told.servers, *names(told), start="earliest") as client:
            while records := client.poll(20, POLL):
                yield from split(records)

    return load.stored(told, pieces)


async def consume_async(told: Told) -> dict[str, Any]:
    """Reads what is stored through the asyncio face."""
    seen, counts = load.checker(told), load.counts_of(told)
    load.gate()
    span = load.Span()
    async with AsyncConsumer(told.servers, told.topic, start="earliest") as client:
        while seen.records < sum(counts):
            records = await client.poll(20, POLL)
            for lane, values in light_pieces(records):
                seen.take(lane, values)
            span.take(seen.records + seen.warm)
    seen.finish(counts)
    return span.result()


def live(told: Told) -> dict[str, Any]:
    """Reads what is sent meanwhile."""

    def read(up: Callable[[], Any]) -> Iterable[tuple[Any, Sequence[bytes]]]:
        with Consumer(told.servers, told.topic, start="latest") as client:
            client.poll(0.5)
            up()
            while True:
                records = client.poll(0.5, POLL)
                yield None, _Values(records)

    return load.Live(told).run(read)


def latency_produce(told: Told) -> dict[str, Any]:
    """Sends at a pace."""
    with producer(told) as client:
        client.send(told.topic, load.warm_value(told)).result(10)
        load.gate()
        count = load.paced(told, lambda value: client.send(told.topic, value), time.sleep)
        client.flush()
    return {"records": count}


def latency_consume(told: Told) -> dict[str, Any]:
    """How late each record is here."""
    found = load.Latencies(told)
    with Consumer(told.servers, told.topic, start="latest") as client:
        client.poll(0.5)
        load.gate()
        while not found.take([record.value for record in client.poll(20)]):
            pass
    return found.result()


def failover(told: Told) -> dict[str, Any]:
    """A record every 2 ms, whatever becomes of the leader."""
    acked = load.Acknowledged()

    def done(number: int, error: ZBrokerError | None) -> None:
        if error is None:
            acked.take(number)
        else:
            acked.errors += 1

    with producer(told) as client:
        number, due = 0, time.monotonic()
        while not acked.over():
            client.send(
                told.topic, load.numbered(number),
                on_delivery=lambda _metadata, error, number=number: done(number, error),
            )  # fmt: skip
            number += 1
            due += load.PERIOD
            time.sleep(max(0.0, due - time.monotonic()))
        client.flush(30)
    return acked.result()


def failover_read(told: Told) -> dict[str, Any]:
    """What of it is there."""
    found = load.Numbers(told)
    with Consumer(told.servers, told.topic, start="earliest", until_end=True) as client:
        found.take(record.value for record in client)
    return found.result()


def first(told: Told) -> dict[str, Any]:
    """A topic and its first acknowledged record, as soon as there is a node."""
    load.gate()
    with Admin(told.servers, timeout=30) as admin:
        admin.create_topic(told.topic)
    with Producer(told.servers, linger_ms=0) as client:
        client.send(told.topic, b"first").result(30)
    return {"end": time.monotonic_ns()}


def again(told: Told) -> dict[str, Any]:
    """An acknowledged record to a topic that is there, as soon as there is a node."""
    load.gate()
    with Producer(told.servers, linger_ms=0) as client:
        client.send(told.topic, b"again").result(120)
        return {"end": time.monotonic_ns()}


def crowd(told: Told) -> dict[str, Any]:
    """Clients that are connected and do nothing, until told to go."""
    with contextlib.ExitStack() as stack:
        for _ in range(told.consumers):
            client = stack.enter_context(Consumer(told.servers, told.topic, start="latest"))
            client.poll(0)
        for _ in range(3):
            client.poll(0.5)
        load.gate()
    return {"records": 0}


if __name__ == "__main__":
    load.main(
        {
            "produce": produce, "produce_async": produce, "consume": consume, "consume_async": consume,
            "live": live, "latency_produce": latency_produce, "latency_consume": latency_consume,
            "failover": failover, "failover_read": failover_read, "first": first, "again": again,
            "crowd": crowd,
        }
    )  # fmt: skip
