"""redis-py, and Redis's own benchmark, under load; see `bench.load` for the words.

A topic is a stream of that name. redis-py sends pipelines of 500 XADDs; `redis-benchmark` keeps 50 connections busy
with 64 each, all its records are equal, and the server's count of them is what is checked. `wait` is the number of
replicas that close each pipeline (WAIT).
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import redis

from bench import load
from bench.load import Told

PIPE = 500
READ = 10_000
FIELD = b"f"
CONNECTIONS, PIPELINED = 50, 64
NOMINAL = {10: 600_000, 100: 500_000, 1024: 200_000, 65536: 6_000}
"""Records a second, about: `redis-benchmark` is told a number of records, not a time."""


def client(told: Told) -> redis.Redis:
    """A connection to the first server, which is the primary."""
    host, _, port = str(told.servers).split(",")[0].partition(":")
    return redis.Redis(host=host, port=int(port), socket_timeout=120)


def names(told: Told) -> list[str]:
    """The streams that are meant."""
    count = told.get("topics", 1)
    return [f"{told.topic}-{n}" for n in range(count)] if count > 1 else [told.topic]


def add(link: redis.Redis, streams: Sequence[str], values: Sequence[bytes], wait: int) -> None:
    """One pipeline, and every answer of it."""
    pipe = link.pipeline(transaction=False)
    count = len(streams)
    for number, value in enumerate(values):
        pipe.xadd(streams[number % count], {FIELD: value})
    if wait:
        pipe.execute_command("WAIT", wait, 5000)
    answers = pipe.execute()
    if wait and answers[-1] < wait:
        raise RuntimeError("not all replicas have it")


def produce(told: Told) -> dict[str, Any]:
    """Sends for so many seconds, each pipeline answered before the next."""
    if told.get("client", "") == "benchmark":
        return benchmark(told)
    values, link, streams, wait = load.ring(told), client(told), names(told), told.get("wait", 0)
    add(link, streams, [load.warm_value(told)] * len(streams), wait)

    def once() -> None:
        for at in range(0, len(values), PIPE):
            add(
                link,
                streams[at % len(streams) :] + streams[: at % len(streams)],
                values[at : at + PIPE],
                wait,
            )

    load.gate()
    start = time.monotonic_ns()
    rounds = load.repeated(told.seconds_ms / 1000, once)
    return {"start": start, "end": time.monotonic_ns(), "records": rounds * len(values)}


def benchmark(told: Told) -> dict[str, Any]:
    """Redis's own benchmark; its count is the server's."""
    host, _, port = str(told.servers).split(",")[0].partition(":")
    records = max(20_000, NOMINAL[told.size] * told.seconds_ms // 1000)
    if told.get("fsync", 0):
        records = records // 2
    records -= records % (CONNECTIONS * PIPELINED)
    link = client(told)
    load.gate()
    before = link.xlen(told.topic)
    start = time.monotonic_ns()
    said = subprocess.run(
        [
            "redis-benchmark", "-h", host, "-p", port, "-c", str(CONNECTIONS), "-P", str(PIPELINED),
            "-n", str(records), "-q", "XADD", told.topic, "*", "f", "x" * told.size,
        ],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    rate = float(re.findall(r"([\d.]+) requests per second", said)[-1])
    there = link.xlen(told.topic) - before
    if there != records:
        raise RuntimeError(f"{there} records are there, sent {records}")
    end = start + int(records / rate * 1e9)
    return {"start": start, "end": end, "records": records, "checked": "count"}


def consume(told: Told) -> dict[str, Any]:
    """Reads what is stored, ten thousand records a call."""
    link = client(told)

    def pieces() -> Iterator[tuple[Any, Sequence[bytes]]]:
        for stream in names(told):
            last = b"0-0"
            while rows := link.xrange(stream, b"(" + last, count=READ):
                last = rows[-1][0]
                yield stream, [fields[FIELD] for _, fields in rows]

    return load.stored(told, pieces)


def blocked(link: redis.Redis, stream: str, last: bytes, milliseconds: int) -> list[Any]:
    """What comes after `last`."""
    found = link.xread({stream: last}, count=READ, block=milliseconds)
    return found[0][1] if found else []


def end_of(link: redis.Redis, stream: str) -> bytes:
    """The last record's id."""
    found = link.xrevrange(stream, count=1)
    return found[0][0] if found else b"0-0"


def live(told: Told) -> dict[str, Any]:
    """Reads what is sent meanwhile."""

    def read(up: Callable[[], Any]) -> Iterable[tuple[Any, Sequence[bytes]]]:
        link = client(told)
        last = end_of(link, told.topic)
        up()
        while True:
            rows = blocked(link, told.topic, last, 200)
            if rows:
                last = rows[-1][0]
            yield None, [fields[FIELD] for _, fields in rows]

    return load.Live(told).run(read)


def latency_produce(told: Told) -> dict[str, Any]:
    """Sends at a pace: each pipeline takes whatever is due."""
    link, wait, pad = client(told), told.get("wait", 0), bytes(told.size - load.STAMPED)
    add(link, [told.topic], [load.warm_value(told)], wait)
    load.gate()
    count, number = told.rate * told.seconds, 0
    start = time.monotonic_ns() + 1_000_000
    while number < count:
        left = start + number * 1_000_000_000 // told.rate - time.monotonic_ns()
        if left > 0:
            time.sleep(left / 1e9)
            continue
        due = min(count, (time.monotonic_ns() - start) * told.rate // 1_000_000_000 + 1)
        times = [(n, start + n * 1_000_000_000 // told.rate) for n in range(number, due)]
        add(link, [told.topic], [load.stamped(n, at, pad) for n, at in times], wait)
        number = due
    return {"records": count}


def latency_consume(told: Told) -> dict[str, Any]:
    """How late each record is here."""
    link, found = client(told), load.Latencies(told)
    last = end_of(link, told.topic)
    load.gate()
    while True:
        rows = blocked(link, told.topic, last, 1000)
        if rows:
            last = rows[-1][0]
            if found.take([fields[FIELD] for _, fields in rows]):
                return found.result()


def first(told: Told) -> dict[str, Any]:
    """The first answered record, as soon as there is a server."""
    load.gate()
    while True:
        try:
            client(told).xadd(told.topic, {FIELD: b"first"})
            return {"end": time.monotonic_ns()}
        except redis.ConnectionError:
            time.sleep(0.001)


def crowd(told: Told) -> dict[str, Any]:
    """Clients that are connected and do nothing, until told to go."""
    links = [client(told) for _ in range(told.consumers)]
    for link in links:
        link.ping()
    load.gate()
    return {"records": len(links)}


if __name__ == "__main__":
    load.main(
        {
            "produce": produce, "consume": consume, "live": live,
            "latency_produce": latency_produce, "latency_consume": latency_consume, "first": first,
            "again": first, "crowd": crowd,
        }
    )  # fmt: skip
