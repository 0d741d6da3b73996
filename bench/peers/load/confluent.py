"""confluent-kafka under load; see `bench.load` for the words.

Its producer has the batches and the linger of the Java client's. Its consumer is tuned where the default would wait a
second between fetches, which is how its users get throughput out of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from bench import load
from bench.load import Told

TUNED = {"fetch.queue.backoff.ms": 5, "queued.min.messages": 1_000_000, "fetch.wait.max.ms": 100}
QUIET = {"log_level": 0}


class Sender:
    """A producer whose failures are counted."""

    def __init__(self, told: Told, **options: Any) -> None:
        self.failed = 0
        self.client = Producer(
            {
                "bootstrap.servers": told.servers, "acks": "all", "linger.ms": told.get("linger", 5),
                "batch.size": 262144, "message.max.bytes": 4 << 20, "enable.idempotence": True,
                "compression.type": told.get("compression", "none"),
                "queue.buffering.max.messages": 500_000, "queue.buffering.max.kbytes": 65536, **options,
            }
        )  # fmt: skip

    def done(self, error: Any, _message: Any) -> None:
        """A record's outcome."""
        if error is not None:
            self.failed += 1

    def send(self, topic: str, value: bytes) -> None:
        """Sends as soon as there is room."""
        while True:
            try:
                self.client.produce(topic, value, on_delivery=self.done)
                return
            except BufferError:
                self.client.poll(0.01)

    def flush(self) -> None:
        """Every record has arrived."""
        left = self.client.flush(60)
        if left or self.failed:
            raise RuntimeError(f"{self.failed} records failed, {left} are still under way")


def names(told: Told) -> list[str]:
    """The topics that are meant."""
    count = told.get("topics", 1)
    return [f"{told.topic}-{n}" for n in range(count)] if count > 1 else [told.topic]


def produce(told: Told) -> dict[str, Any]:
    """Sends for so many seconds, and waits for every acknowledgement."""
    values, sender, topics = load.ring(told), Sender(told), names(told)
    for topic in topics:
        sender.send(topic, load.warm_value(told))
    sender.flush()
    send, poll, topic = sender.send, sender.client.poll, topics[0]

    def once() -> None:
        for number, value in enumerate(values):
            send(topic, value)
            if not number & 1023:
                poll(0)

    load.gate()
    start = time.monotonic_ns()
    rounds = load.repeated(told.seconds_ms / 1000, once)
    sender.flush()
    return {"start": start, "end": time.monotonic_ns(), "records": rounds * len(values)}


def consumer(told: Told, **options: Any) -> Consumer:
    """Reads from the beginning, without a group's work."""
    return Consumer(
        {
            "bootstrap.servers": told.servers, "group.id": "bench", "auto.offset.reset": "earliest",
            "enable.auto.commit": False, **TUNED, **options,
        }
    )  # fmt: skip


def places(client: Consumer, topics: Iterable[str]) -> list[TopicPartition]:
    """Every partition of the topics."""
    found = client.list_topics(timeout=10).topics
    return [TopicPartition(topic, part) for topic in topics for part in found[topic].partitions]


def pieces_of(messages: Sequence[Any], whole: bool) -> Iterator[tuple[Any, Sequence[bytes]]]:
    """Messages of one call, by partition where all of them are looked at."""
    for message in (messages[0], messages[-1]):
        if message.error():
            raise RuntimeError(str(message.error()))
    if not whole:
        yield None, _Values(messages)
        return
    lanes: dict[Any, list[bytes]] = {}
    for message in messages:
        lanes.setdefault((message.topic(), message.partition()), []).append(message.value())
    yield from lanes.items()


class _Values(Sequence[bytes]):
    """The messages' values, taken only where somebody looks."""

    def __init__(self, messages: Sequence[Any]) -> None:
        self._messages = messages

    def __len__(self) -> int:
        return len(self._messages)

    def __getitem__(self, at: Any) -> Any:
        return self._messages[at].value()


def consume(told: Told) -> dict[str, Any]:
    """Reads what is stored."""
    whole = told.get("check", "ends") == "all"

    def pieces() -> Iterator[tuple[Any, Sequence[bytes]]]:
        client = consumer(told)
        client.assign(
            [TopicPartition(p.topic, p.partition, 0) for p in places(client, names(told))]
        )
        quiet = time.monotonic()
        while time.monotonic() - quiet < 20:
            # It waits so long for all of them: with more, the last records would take a second.
            if messages := client.consume(10_000, timeout=0.05):
                quiet = time.monotonic()
                yield from pieces_of(messages, whole)

    return load.stored(told, pieces)


def live(told: Told) -> dict[str, Any]:
    """Reads what is sent meanwhile."""

    def read(up: Callable[[], Any]) -> Iterable[tuple[Any, Sequence[bytes]]]:
        client = consumer(told)
        found = places(client, [told.topic])
        client.assign(
            [
                TopicPartition(p.topic, p.partition, client.get_watermark_offsets(p)[1])
                for p in found
            ]
        )
        client.poll(0.5)
        up()
        while True:
            messages = client.consume(10_000, timeout=0.05)
            yield from pieces_of(messages, False) if messages else [(None, ())]

    return load.Live(told).run(read)


def latency_produce(told: Told) -> dict[str, Any]:
    """Sends at a pace."""
    sender = Sender(told)
    sender.send(told.topic, load.warm_value(told))
    sender.flush()
    load.gate()

    def send(value: bytes) -> None:
        sender.send(told.topic, value)
        sender.client.poll(0)

    count = load.paced(told, send, time.sleep)
    sender.flush()
    return {"records": count}


def latency_consume(told: Told) -> dict[str, Any]:
    """How late each record is here."""
    found, client = load.Latencies(told), consumer(told)
    client.assign(
        [
            TopicPartition(p.topic, p.partition, client.get_watermark_offsets(p)[1])
            for p in places(client, [told.topic])
        ]
    )
    client.poll(0.5)
    load.gate()
    while True:
        message = client.poll(1)
        if message is not None and not message.error() and found.take((message.value(),)):
            return found.result()


def failover(told: Told) -> dict[str, Any]:
    """A record every 2 ms, whatever becomes of the leader; the client's settings are its defaults."""
    acked = load.Acknowledged()
    client = Producer({"bootstrap.servers": told.servers, "acks": "all", **QUIET})

    def done(error: Any, message: Any) -> None:
        if error is None:
            acked.take(int(message.key()))
        else:
            acked.errors += 1

    number, due = 0, time.monotonic()
    while not acked.over():
        client.produce(told.topic, load.numbered(number), key=str(number), on_delivery=done)
        number += 1
        due += load.PERIOD
        client.poll(max(0.0, due - time.monotonic()))
        while (left := due - time.monotonic()) > 0:
            client.poll(left)
    client.flush(30)
    return acked.result()


def failover_read(told: Told) -> dict[str, Any]:
    """What of it is there."""
    found, client = load.Numbers(told), consumer(told, **QUIET)
    client.assign([TopicPartition(told.topic, 0, 0)])
    end = client.get_watermark_offsets(TopicPartition(told.topic, 0), timeout=20)[1]
    deadline = time.monotonic() + 30
    while len(found.found) < end and time.monotonic() < deadline:
        found.take(m.value() for m in client.consume(10_000, timeout=0.2) if not m.error())
    return found.result()


def first(told: Told) -> dict[str, Any]:
    """The first acknowledged record, of a topic that it makes, as soon as there is a server."""
    load.gate()
    client = Producer(
        {
            "bootstrap.servers": told.servers,
            "reconnect.backoff.max.ms": 100,
            "linger.ms": 0,
            **QUIET,
        }
    )
    end: list[int] = []
    client.produce(
        told.topic, b"first",
        on_delivery=lambda error, _message: end.append(time.monotonic_ns()) if error is None else None,
    )  # fmt: skip
    while not end:
        client.poll(0.1)
    return {"end": end[0]}


def crowd(told: Told) -> dict[str, Any]:
    """Clients that are connected and do nothing, until told to go."""
    clients = []
    for _ in range(told.consumers):
        client = consumer(told, **QUIET)
        client.assign([TopicPartition(told.topic, 0)])
        clients.append(client)
    for client in clients:
        client.poll(0.02)
    load.gate()
    return {"records": 0}


def admin(told: Told) -> dict[str, Any]:
    """Errands for the driver."""
    client = AdminClient(
        {"bootstrap.servers": told.servers, "reconnect.backoff.max.ms": 200, **QUIET}
    )

    def brokers() -> int:
        return len(client.list_topics(timeout=1).brokers)

    def create(topics: list[str], partitions: int, replicas: int, config: dict[str, str]) -> bool:
        wanted = [NewTopic(t, partitions, replicas, config=config) for t in topics]
        for future in client.create_topics(wanted).values():
            future.result()
        return True

    def leaders(topics: list[str], replicas: int) -> list[int]:
        """Who leads the first partition of each, -1 where not all replicas are in sync."""
        found = client.list_topics(timeout=10).topics
        return [
            min(
                part.leader if len(part.isrs) == replicas else -1
                for part in found[topic].partitions.values()
            )
            if topic in found and found[topic].partitions
            else -1
            for topic in topics
        ]

    def delete(topics: list[str]) -> bool:
        for future in client.delete_topics(topics).values():
            future.result()
        return True

    return load.serve({"brokers": brokers, "create": create, "leaders": leaders, "delete": delete})


if __name__ == "__main__":
    load.main(
        {
            "produce": produce, "consume": consume, "live": live, "latency_produce": latency_produce,
            "latency_consume": latency_consume, "failover": failover, "failover_read": failover_read,
            "first": first, "again": first, "crowd": crowd,
            "admin": admin,
        }
    )  # fmt: skip
