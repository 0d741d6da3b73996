"""One producer, one node, one consumer, beside the smallest pipeline that the machine allows.

    python -m bench.one_node [--runs 3] [--records 2000000] [--only send,send_many,…] [--json FILE]

Each run measures the yardstick and every case once, interleaved, so that a noisy machine is noisy for all of them; the
table gives medians and ratios. Every case checks what was delivered: a benchmark that loses a record fails.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

from bench.pipeline import pipeline
from zbroker import Admin, Consumer, Producer
from zbroker.testing.nodes import running_node

TOPIC = "bench"
CHUNK = 10_000


def produce_by_send(servers: str, value_bytes: int, records: int) -> float:
    """Records a second, one `send` a record, all acknowledged at the end."""
    value = os.urandom(value_bytes)
    with Producer(servers) as producer:
        producer.send(TOPIC, value).result(10)
        start = time.perf_counter()
        send = producer.send
        for _ in range(records):
            last = send(TOPIC, value)
        producer.flush()
        took = time.perf_counter() - start
        last.result(0)
    return records / took


def produce_by_send_many(servers: str, value_bytes: int, records: int) -> float:
    """Records a second, ten thousand records a call."""
    values = [os.urandom(value_bytes)] * CHUNK
    with Producer(servers) as producer:
        producer.send(TOPIC, values[0]).result(10)
        start = time.perf_counter()
        for _ in range(records // CHUNK):
            last = producer.send_many(TOPIC, values)
        producer.flush()
        took = time.perf_counter() - start
        last.result(0)
    return records // CHUNK * CHUNK / took


def consume_stored(servers: str, records: int) -> float:
    """Records a second, read from the log into `Record` objects."""
    with Consumer(servers, TOPIC, start="earliest") as consumer:
        seen, start = 0, time.perf_counter()
        while seen < records:
            batch = consumer.poll(timeout=10, max_records=5000)
            assert batch, f"only {seen} of {records} records came"
            seen += len(batch)
        return seen / (time.perf_counter() - start)


def _live_consumer(servers: str, records: int, out: Queue[float | str]) -> None:
    with Consumer(servers, TOPIC, start="latest") as consumer:
        consumer.poll(timeout=0.5)
        out.put("ready")
        seen, expected = 0, None
        while seen < records:
            batch = consumer.poll(timeout=10, max_records=5000)
            assert batch, f"only {seen} of {records} records came"
            for record in (batch[0], batch[-1]):
                assert expected is None or record.offset >= expected, "out of order"
                expected = record.offset
            seen += len(batch)
        assert seen == records, f"{seen} records came, not {records}"
        out.put(time.perf_counter())


def consume_live(servers: str, value_bytes: int, records: int, *, lists: bool) -> float:
    """Records a second from the first of a producer until a live consumer in another process has them all.

    Args:
        lists: the producer sends lists of them, not one by one.
    """
    out: Any = multiprocessing.get_context("spawn").Queue()
    reader = multiprocessing.get_context("spawn").Process(
        target=_live_consumer, args=(servers, records // CHUNK * CHUNK, out)
    )
    records -= records % CHUNK
    values = [os.urandom(value_bytes)] * CHUNK
    with Producer(servers) as producer:
        reader.start()
        assert out.get(timeout=20) == "ready"
        send = producer.send
        start = time.perf_counter()
        for _ in range(records // CHUNK):
            if lists:
                producer.send_many(TOPIC, values)
                continue
            for value in values:
                send(TOPIC, value)
        producer.flush()
        produced = time.perf_counter() - start
        end: float = out.get(timeout=60)
    reader.join()
    consumed = end - start
    print(
        f"    (produced at {records / produced:,.0f} records/s meanwhile; the consumer had all "
        f"{max(0.0, consumed - produced) * 1000:,.0f} ms after the last acknowledgement)",
        flush=True,
    )
    return records / consumed


def on_a_node(fsync: str, measure: Callable[[str], float]) -> float:
    """The measure on a fresh node with one topic of one partition."""
    with tempfile.TemporaryDirectory() as folder, running_node(Path(folder)) as node:
        with Admin(node.servers) as admin:
            admin.create_topic(TOPIC, partitions=1, fsync=fsync)
        return measure(node.servers)


def cases(records: int) -> dict[str, Callable[[], float]]:
    """Every case by its name; the yardsticks are those that begin with `limit`."""
    small, large = records, records // 5
    found: dict[str, Callable[[], float]] = {}
    for size, count in ((100, small), (1024, large)):
        found[f"limit {size}"] = lambda s=size, n=count: pipeline(s, n)
        for fsync in ("never", "always"):
            found[f"send {size} {fsync}"] = lambda s=size, n=count, f=fsync: on_a_node(
                f, lambda servers: produce_by_send(servers, s, n)
            )
            found[f"send_many {size} {fsync}"] = lambda s=size, n=count, f=fsync: on_a_node(
                f, lambda servers: produce_by_send_many(servers, s, n)
            )

        def stored(servers: str, s: int = size, n: int = count) -> float:
            produce_by_send_many(servers, s, n)
            return consume_stored(servers, n // CHUNK * CHUNK)

        found[f"stored {size}"] = lambda measure=stored: on_a_node("never", measure)
        for name, lists in (("live_send", False), ("live", True)):
            found[f"{name} {size}"] = lambda s=size, n=count, lists=lists: on_a_node(
                "never", lambda servers: consume_live(servers, s, n, lists=lists)
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument(
        "--records", type=int, default=2_000_000, help="of 100 B; a fifth of it of 1 KiB"
    )
    parser.add_argument(
        "--only", help="comma-separated beginnings of case names; limits are always measured"
    )
    parser.add_argument("--json", type=Path, help="where every value goes")
    args = parser.parse_args()
    wanted = tuple(args.only.split(",")) if args.only else ("",)
    chosen = {
        name: measure
        for name, measure in cases(args.records).items()
        if name.startswith(("limit", *wanted)) or not args.only
    }
    rates: dict[str, list[float]] = {name: [] for name in chosen}
    for run in range(args.runs):
        for name, measure in chosen.items():
            rates[name].append(measure())
            print(f"run {run + 1}: {name:24} {rates[name][-1]:>12,.0f} records/s", flush=True)
    print(f"\n{'case':24} {'median/s':>12} {'ns/record':>10} {'of the limit':>13}")
    for name, values in rates.items():
        size = name.split()[1]
        ratios = [
            value / limit for value, limit in zip(values, rates[f"limit {size}"], strict=True)
        ]
        median = statistics.median(values)
        print(
            f"{name:24} {median:>12,.0f} {1e9 / median:>10,.0f} {statistics.median(ratios):>13.2f}"
        )
    if args.json:
        args.json.write_text(json.dumps(rates, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
