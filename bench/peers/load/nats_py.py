"""nats-py under load; see `bench.load` for the words. A topic is a stream of that name with the subject `NAME.x`.

It publishes with one reply inbox and counts the acknowledgements, up to 4000 in flight: ten times quicker than the
library's own `publish_async`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from typing import Any

import nats
from nats.js.api import DeliverPolicy

from bench import load
from bench.load import Told

IN_FLIGHT = 4000


async def connect(told: Told, **options: Any) -> Any:
    """A connection to the first server."""
    return await nats.connect(f"nats://{str(told.servers).split(',')[0]}", **options)


async def connect_to_new(told: Told) -> Any:
    """A connection as soon as somebody listens; the library itself would wait two seconds after a refusal."""
    host, _, port = str(told.servers).partition(",")[0].partition(":")
    while True:
        try:
            socket.create_connection((host, int(port)), 1).close()
            return await connect(told, allow_reconnect=False, connect_timeout=2, error_cb=_ignore)
        except Exception:
            await asyncio.sleep(0.002)


class Publisher:
    """Publishes, and counts the acknowledgements."""

    async def open(self, told: Told) -> Publisher:
        """Connects."""
        self.link = await connect(told)
        self.subject = f"{told.topic}.x"
        self.sent = self.acked = self.bad = 0
        self._room = asyncio.Event()
        self._inbox = self.link.new_inbox()
        await self.link.subscribe(self._inbox, cb=self._ack)
        return self

    async def _ack(self, message: Any) -> None:
        self.bad += b'"error"' in message.data or not message.data
        self.acked += 1
        self._room.set()

    async def publish(self, value: bytes) -> None:
        """One record."""
        self.sent += 1
        await self.link.publish(self.subject, value, reply=self._inbox)

    async def wait(self, in_flight: int) -> None:
        """Until so few are unacknowledged."""
        while self.sent - self.acked > in_flight:
            self._room.clear()
            await asyncio.wait_for(self._room.wait(), 30)
        if self.bad:
            raise RuntimeError(f"{self.bad} records failed")


async def produce(told: Told) -> dict[str, Any]:
    """Sends for so many seconds, and waits for every acknowledgement."""
    values, out, rounds = load.ring(told), await Publisher().open(told), 0
    await out.publish(load.warm_value(told))
    await out.wait(0)
    load.gate()
    start = time.monotonic_ns()
    while not rounds or time.monotonic_ns() - start < told.seconds_ms * 1_000_000:
        for value in values:
            await out.publish(value)
            if out.sent - out.acked >= IN_FLIGHT:
                await out.wait(IN_FLIGHT - 1)
        rounds += 1
    await out.wait(0)
    return {"start": start, "end": time.monotonic_ns(), "records": rounds * len(values)}


async def consume(told: Told) -> dict[str, Any]:
    """Reads what is stored, pushed by an ordered consumer."""
    seen, counts, over = load.checker(told), load.counts_of(told), asyncio.Event()
    load.gate()
    link, span = await connect(told), load.Span()

    async def take(message: Any) -> None:
        seen.take(None, (message.data,))
        if seen.records + seen.warm == 1:
            span.take(1)
        if seen.records >= sum(counts):
            over.set()

    await link.jetstream().subscribe(f"{told.topic}.x", ordered_consumer=True, cb=take)
    await asyncio.wait_for(over.wait(), 120)
    span.take(seen.records + seen.warm)
    seen.finish(counts)
    return span.result()


async def latency_produce(told: Told) -> dict[str, Any]:
    """Sends at a pace, which a thread keeps: the loop's own sleep is as coarse as a millisecond."""
    out = await Publisher().open(told)
    await out.publish(load.warm_value(told))
    await out.wait(0)
    load.gate()
    count = await load.paced_in_loop(told, out.publish)
    await out.wait(0)
    return {"records": count}


async def latency_consume(told: Told) -> dict[str, Any]:
    """How late each record is here."""
    link, found, over = await connect(told), load.Latencies(told), asyncio.Event()

    async def take(message: Any) -> None:
        if found.take((message.data,)):
            over.set()

    await link.jetstream().subscribe(
        f"{told.topic}.x", ordered_consumer=True, cb=take, deliver_policy=DeliverPolicy.NEW
    )
    await asyncio.to_thread(load.gate)
    await asyncio.wait_for(over.wait(), 120)
    return found.result()


async def failover(told: Told) -> dict[str, Any]:
    """A record every 2 ms, one at a time; another server is tried after a second without a word."""

    async def quiet(_error: Exception) -> None:
        pass

    acked = load.Acknowledged()
    link = await nats.connect(
        [f"nats://{server}" for server in str(told.servers).split(",")], dont_randomize=True,
        reconnect_time_wait=0.1, max_reconnect_attempts=-1, connect_timeout=1, ping_interval=1,
        max_outstanding_pings=2, error_cb=quiet,
    )  # fmt: skip
    js, number, due = link.jetstream(timeout=1), 0, time.monotonic()
    while not acked.over():
        try:
            await js.publish(
                f"{told.topic}.x",
                load.numbered(number),
                timeout=1,
                headers={"Nats-Msg-Id": str(number)},
            )
        except Exception:
            acked.errors += 1
            await asyncio.sleep(0.01)
            continue
        acked.take(number)
        number += 1
        due = max(due + load.PERIOD, time.monotonic() - load.PERIOD)
        await asyncio.sleep(max(0.0, due - time.monotonic()))
    return acked.result()


async def counted(js: Any, topic: str) -> int:
    """How many records a stream has; a cluster that has lost a server may take a while to say so."""
    until = time.monotonic() + 60
    while True:
        try:
            return int((await js.stream_info(topic)).state.messages)
        except nats.errors.TimeoutError:
            if time.monotonic() > until:
                raise


async def failover_read(told: Told) -> dict[str, Any]:
    """What of it is there."""
    link = await connect(told)
    js, found, over = link.jetstream(timeout=5), load.Numbers(told), asyncio.Event()
    count = await counted(js, told.topic)

    async def take(message: Any) -> None:
        found.take((message.data,))
        if len(found.found) >= count:
            over.set()

    await js.subscribe(f"{told.topic}.x", ordered_consumer=True, cb=take)
    await asyncio.wait_for(over.wait(), 60)
    return found.result()


async def again(told: Told) -> dict[str, Any]:
    """An acknowledged record to a stream that is there, as soon as there is a server."""
    await asyncio.to_thread(load.gate)
    while True:
        link = await connect_to_new(told)
        try:
            await link.jetstream(timeout=5).publish(f"{told.topic}.x", b"again")
            return {"end": time.monotonic_ns()}
        except Exception:
            await asyncio.sleep(0.002)


async def first(told: Told) -> dict[str, Any]:
    """A stream and its first acknowledged record, as soon as there is a server."""
    await asyncio.to_thread(load.gate)
    link = await connect_to_new(told)
    js = link.jetstream(timeout=60)
    await js.add_stream(name=told.topic, subjects=[f"{told.topic}.>"])
    await js.publish(f"{told.topic}.x", b"first")
    return {"end": time.monotonic_ns()}


async def _ignore(_error: Exception) -> None:
    pass


async def crowd(told: Told) -> dict[str, Any]:
    """Clients that are connected and do nothing, until told to go."""
    links = [await connect(told) for _ in range(told.consumers)]
    for link in links:
        await link.jetstream().subscribe(
            f"{told.topic}.x", ordered_consumer=True, cb=_ignore, deliver_policy=DeliverPolicy.NEW
        )
    await asyncio.to_thread(load.gate)
    return {"records": len(links)}


class Admin:
    """Errands for the driver, each in the loop."""

    def __init__(self, told: Told) -> None:
        self._told = told

    async def _each(self, names: list[str], what: Any) -> Any:
        link = await connect(self._told, connect_timeout=2)
        try:
            return [await what(link, name) for name in names]
        finally:
            with contextlib.suppress(Exception):
                await link.close()

    def create(self, topics: list[str], replicas: int) -> bool:
        """Streams on files."""

        async def one(link: Any, name: str) -> None:
            config = {
                "name": name, "subjects": [f"{name}.>"], "storage": "file", "retention": "limits",
                "num_replicas": replicas, "allow_batched": True,
            }  # fmt: skip
            answer = await link.request(
                f"$JS.API.STREAM.CREATE.{name}", json.dumps(config).encode(), timeout=5
            )
            if "error" in json.loads(answer.data):
                raise RuntimeError(answer.data.decode())

        asyncio.run(self._each(topics, one))
        return True

    def leaders(self, topics: list[str], replicas: int) -> list[str]:
        """Who leads each; empty where its replicas are not all current."""

        async def one(link: Any, name: str) -> str:
            found = (await link.jetstream(timeout=2).stream_info(name)).cluster
            if replicas == 1:
                return "n0"
            current = sum(peer.current for peer in found.replicas or ())
            return (found.leader or "") if current == replicas - 1 else ""

        answer: list[str] = asyncio.run(self._each(topics, one))
        return answer

    def delete(self, topics: list[str]) -> bool:
        """Gone."""
        asyncio.run(self._each(topics, lambda link, name: link.jetstream().delete_stream(name)))
        return True


def admin(told: Told) -> dict[str, Any]:
    """Errands for the driver."""
    does = Admin(told)
    return load.serve({"create": does.create, "leaders": does.leaders, "delete": does.delete})


def in_loop(action: Any) -> Any:
    """An action as the command line calls it."""
    return lambda told: asyncio.run(action(told))


if __name__ == "__main__":
    load.main(
        {
            "admin": admin,
            **{
                action.__name__: in_loop(action)
                for action in (
                    produce, consume, latency_produce, latency_consume, failover, failover_read, first, again, crowd,
                )
            },
        }
    )  # fmt: skip
