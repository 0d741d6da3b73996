"""rstream under load; see `bench.load` for the words. A topic is a stream.

It sends lists of a thousand (its own `send` waits half a second), up to ten thousand unconfirmed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable
from typing import Any

from rstream import Consumer, ConsumerOffsetSpecification, OffsetType, Producer
from rstream.recovery import BackOffRecoveryStrategy

from bench import load
from bench.load import Told

BATCH, IN_FLIGHT = 1000, 10_000
USER = {"username": "guest", "password": "guest"}


def ports(told: Told) -> list[int]:
    """Of each server's stream listener."""
    return [int(server.rpartition(":")[2]) for server in str(told.servers).split(",")]


def producer(port: int) -> Producer:
    """A producer that does not reconnect by itself."""
    return Producer("localhost", port, recovery_strategy=BackOffRecoveryStrategy(False), **USER)


async def produce(told: Told) -> dict[str, Any]:
    """Sends for so many seconds, and waits for every confirmation."""
    values, done, bad, sent, rounds = load.ring(told), 0, 0, 0, 0

    def confirmed(status: Any) -> None:
        nonlocal done, bad
        done += 1
        bad += not status.is_confirmed

    async with producer(ports(told)[0]) as out:

        async def send(some: list[bytes]) -> None:
            nonlocal sent
            await out.send_batch(told.topic, some, on_publish_confirm=confirmed)
            sent += len(some)
            while sent - done > IN_FLIGHT - BATCH:
                await asyncio.sleep(0)

        async def settle() -> None:
            while done < sent:
                await asyncio.sleep(0)
            if bad:
                raise RuntimeError(f"{bad} records failed")

        batch = max(1, min(BATCH, (512 << 10) // told.size))
        await send([load.warm_value(told)])
        await settle()
        load.gate()
        start = time.monotonic_ns()
        while not rounds or time.monotonic_ns() - start < told.seconds_ms * 1_000_000:
            for at in range(0, len(values), batch):
                await send(values[at : at + batch])
            rounds += 1
        await settle()
        return {"start": start, "end": time.monotonic_ns(), "records": rounds * len(values)}


@contextlib.asynccontextmanager
async def reading(told: Told, offset: OffsetType, take: Callable[[bytes], None]) -> Any:
    """A consumer whose records go to `take`."""
    client = Consumer("localhost", ports(told)[0], **USER)
    await client.start()
    await client.subscribe(
        told.topic,
        lambda message, _context: take(message),
        offset_specification=ConsumerOffsetSpecification(offset, None),
    )
    yield client


async def consume(told: Told) -> dict[str, Any]:
    """Reads what is stored."""
    seen, counts, over = load.checker(told), load.counts_of(told), asyncio.Event()
    span = load.Span()

    def take(value: bytes) -> None:
        seen.take(None, (value,))
        if seen.records + seen.warm == 1:
            span.take(1)
        if seen.records >= sum(counts):
            over.set()

    load.gate()
    async with reading(told, OffsetType.FIRST, take):
        await asyncio.wait_for(over.wait(), 120)
        span.take(seen.records + seen.warm)
    seen.finish(counts)
    return span.result()


async def latency_produce(told: Told) -> dict[str, Any]:
    """Sends at a pace, which a thread keeps."""
    async with producer(ports(told)[0]) as out:
        await out.send_batch(told.topic, [load.warm_value(told)])
        await asyncio.sleep(0.3)
        load.gate()
        count = await load.paced_in_loop(told, lambda value: out.send_batch(told.topic, [value]))
        await asyncio.sleep(0.3)
    return {"records": count}


async def latency_consume(told: Told) -> dict[str, Any]:
    """How late each record is here."""
    found, over = load.Latencies(told), asyncio.Event()

    def take(value: bytes) -> None:
        if found.take((value,)):
            over.set()

    async with reading(told, OffsetType.NEXT, take):
        await asyncio.to_thread(load.gate)
        await asyncio.wait_for(over.wait(), 120)
    return found.result()


async def failover(told: Told) -> dict[str, Any]:
    """A record every 2 ms, one at a time; another node is tried after a second without an answer."""
    acked, out, seed, number, due = load.Acknowledged(), None, 0, 0, time.monotonic()
    found = ports(told)
    while not acked.over():
        try:
            if out is None:
                seed += 1
                out = producer(found[seed % len(found)])
                await asyncio.wait_for(out.start(), 1)
            await asyncio.wait_for(out.send_wait(told.topic, load.numbered(number), timeout=1), 1)
        except Exception:
            acked.errors += 1
            if out is not None:
                abandon(out)
                out = None
            await asyncio.sleep(0.02)
            continue
        acked.take(number)
        number += 1
        due = max(due + load.PERIOD, time.monotonic() - load.PERIOD)
        await asyncio.sleep(max(0.0, due - time.monotonic()))
    return acked.result()


def abandon(out: Producer) -> None:
    """Drops a producer's connections; closing them in order waits for answers that do not come."""
    for clients in out._pool._clients.values():
        for one in clients:
            with contextlib.suppress(Exception):
                one._connection_closed_handler = None
                for task in one._tasks.values():
                    task.cancel()
                if one._conn and one._conn._writer:
                    one._conn._writer.transport.abort()


async def failover_read(told: Told) -> dict[str, Any]:
    """What of it is there."""
    found, last = load.Numbers(told), time.monotonic()

    def take(value: bytes) -> None:
        nonlocal last
        found.take((value,))
        last = time.monotonic()

    async with reading(told, OffsetType.FIRST, take):
        while time.monotonic() - last < 3:
            await asyncio.sleep(0.1)
    return found.result()


async def first(told: Told) -> dict[str, Any]:
    """A stream and its first confirmed record, as soon as there is a node."""
    await asyncio.to_thread(load.gate)
    while True:
        try:
            async with producer(ports(told)[0]) as out:
                await out.create_stream(told.topic, exists_ok=True)
                await out.send_wait(told.topic, b"first", timeout=2)
                return {"end": time.monotonic_ns()}
        except Exception:
            await asyncio.sleep(0.02)


async def again(told: Told) -> dict[str, Any]:
    """A confirmed record to a stream that is there, as soon as there is a node."""
    await asyncio.to_thread(load.gate)
    while True:
        try:
            async with producer(ports(told)[0]) as out:
                await out.send_wait(told.topic, b"again", timeout=2)
                return {"end": time.monotonic_ns()}
        except Exception:
            await asyncio.sleep(0.02)


class Admin:
    """Errands for the driver."""

    def __init__(self, told: Told) -> None:
        self._port = ports(told)[0]

    async def _with(self, what: Any) -> Any:
        out = producer(self._port)
        await asyncio.wait_for(out.start(), 5)
        try:
            return await what(out)
        finally:
            with contextlib.suppress(Exception):
                await asyncio.wait_for(out.close(), 5)

    def create(self, topics: list[str], replicas: int) -> bool:
        """Streams, led by the node that is asked."""
        told = {"initial-cluster-size": str(replicas), "queue-leader-locator": "client-local"}

        async def all_of_them(out: Producer) -> bool:
            for topic in topics:
                await out.create_stream(topic, told, exists_ok=True)
            return True

        return bool(asyncio.run(self._with(all_of_them)))

    def leader(self, topic: str, replicas: int, port: int) -> int:
        """The stream port of who leads it; 0 where not all replicas are known."""
        self._port = port

        async def ask(out: Producer) -> int:
            leader, others = await (await out.default_client).query_leader_and_replicas(topic)
            return leader.port if len(others) == replicas - 1 else 0

        return int(asyncio.run(self._with(ask)))

    def delete(self, topics: list[str]) -> bool:
        """Gone."""

        async def all_of_them(out: Producer) -> bool:
            for topic in topics:
                await out.delete_stream(topic)
            return True

        return bool(asyncio.run(self._with(all_of_them)))


def admin(told: Told) -> dict[str, Any]:
    """Errands for the driver."""
    does = Admin(told)
    return load.serve({"create": does.create, "leader": does.leader, "delete": does.delete})


def in_loop(action: Any) -> Any:
    """An action as the command line calls it; what the library's tasks still do at the end does not count."""

    def run(told: Told) -> dict[str, Any]:
        found: dict[str, Any] = asyncio.run(action(told))
        print(load.json.dumps(found), flush=True)
        os._exit(0)

    return run


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    load.main(
        {
            "admin": admin,
            **{
                action.__name__: in_loop(action)
                for action in (
                    produce, consume, latency_produce, latency_consume, failover, failover_read, first, again,
                )
            },
        }
    )  # fmt: skip
