"""What a record costs the client, without a network: nanoseconds on one core, the best of several runs.

    python -m bench.client_costs [--size 100] [--runs 7]

`send` and `send_many` fill real batches of the producer's buffer, which are thrown away when sealed; `encode` turns
such batches into bytes; `decode` makes `Record` objects of them, as `Consumer.poll` does.
"""

from __future__ import annotations

import argparse
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from zbroker.client.accumulator import Accumulator
from zbroker.client.buffer import Ready
from zbroker.client.consumer import Consumer
from zbroker.client.producer import Producer
from zbroker.client.producing import WINDOW
from zbroker.client.records import TopicPartition
from zbroker.client.splice import Piece
from zbroker.protocol.batch import encode_batch, finish_batch, read_header, stamp
from zbroker.protocol.columns import encode_columns

RECORDS = 20_000


def a_producer() -> tuple[Producer, Accumulator]:
    """A producer whose thread never starts, and its buffer; the topic's partitions are known."""
    producer = Producer()
    producer._connection.start = lambda: None  # type: ignore[method-assign]
    accumulator = producer._accumulator
    accumulator.room = 1 << 60
    with accumulator.lock:
        accumulator.lane("t")
    accumulator.assign("t", 4, 4 << 20)
    return producer, accumulator


def best(runs: int, records: int, work: Callable[[], Any], reset: Callable[[], Any]) -> float:
    """Nanoseconds a record."""
    took = []
    for _ in range(runs):
        reset()
        start = time.perf_counter()
        work()
        took.append(time.perf_counter() - start)
    return min(took) / records * 1e9


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--size", type=int, default=100, help="bytes of a value")
    parser.add_argument("--runs", type=int, default=7)
    args = parser.parse_args()
    producer, accumulator = a_producer()
    value = bytes(args.size)
    values = [value] * RECORDS
    lengths = [value[n % 8 :] for n in range(RECORDS)]
    keys = [b"key-%d" % (n % 1000) for n in range(RECORDS)]

    def show(name: str, work: Callable[[], Any]) -> None:
        took = best(args.runs, RECORDS, work, forget)
        print(f"{name:24} {took:8.0f} ns a record", flush=True)

    def forget() -> None:
        accumulator.closed.clear()
        accumulator.unfinished.clear()

    def send() -> None:
        one = producer.send
        for _ in range(RECORDS):
            one("t", value)

    def send_several_lengths() -> None:
        one = producer.send
        for various in lengths:
            one("t", various)

    def send_keyed() -> None:
        one = producer.send
        for key in keys:
            one("t", value, key=key)

    show("send", send)
    show("send, several lengths", send_several_lengths)
    show("send, with a key", send_keyed)
    show("send_many", lambda: producer.send_many("t", values))
    show("send_many, with keys", lambda: producer.send_many("t", values, keys))

    def encode(**columns: Any) -> Callable[[], Any]:
        runs = [(200 * delta, delta) for delta in range(5)]
        column = {"values": [value] * 1000, "keys": None, "headers": None, **columns}
        return lambda: deque(
            (
                finish_batch(
                    encode_columns(**column, runs=runs, size_hint=1000 * (args.size + 16)),
                    1000, base_timestamp=0, max_timestamp=4,
                )
                for _ in range(RECORDS // 1000)
            ),
            WINDOW,
        )  # fmt: skip

    show("encode", encode(same_length=True))
    show("encode, several lengths", encode(values=[value[n % 8 :] for n in range(1000)]))
    show("encode, with keys", encode(keys=keys[:1000]))

    rows = [(n % 5, None, value, ()) for n in range(1000)]
    batch = encode_batch(rows, base_timestamp=0, max_timestamp=4)
    stamp(batch, base_offset=0, append_time=0, leader_epoch=0)
    consumer = Consumer("localhost:5550", "t")
    place = TopicPartition("t", 0)
    header = read_header(batch)
    ready = Ready(place, 0, 1000, Piece(bytes(batch), 0, header, 0))
    show("decode", lambda: [consumer._decoder.decode(ready) for _ in range(RECORDS // 1000)])


if __name__ == "__main__":
    main()
