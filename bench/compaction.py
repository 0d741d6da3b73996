"""A topic of many records and few keys shrinks to its keys while readers go through it: what they see, who notices.

    python -m bench.compaction [--records 10000000] [--keys 100000]

One node with one topic of one partition. It is filled, then altered to `cleanup: compact`; from then on a reader goes
through the whole of it again and again, and must get each key's newest value and no error. Beside it a client asks the
node for an offset every few milliseconds, before and while it compacts: how long it waits shows what compaction takes
from others. Ends with status 1 where something is not as it should be.

Then the same log work without a node, in this process: how long any one call into the log keeps the reactor's thread,
by that thread's CPU time.
"""

from __future__ import annotations

import argparse
import os
import random
import select
import sys
import tempfile
import threading
import time
from array import array
from pathlib import Path

from zbroker import Admin, Consumer, Producer
from zbroker.log import CompactionDone, Log, LogSettings, Opened
from zbroker.node.files import RealFiles
from zbroker.node.run import SWITCH_INTERVAL_S
from zbroker.node.storage import ThreadedStorage
from zbroker.protocol.batch import encode_batch, read_header, stamp
from zbroker.testing.nodes import running_node
from zbroker.units import format_size

TOPIC = "table"
PIECE = 10_000
PAUSE_S = 0.003
BEFORE_S = 5.0


def key(number: int) -> bytes:
    return b"key-%08d" % number


def fill(servers: str, records: int, keys: int) -> None:
    """Values say which record they are of; every key is written at least once."""
    rng = random.Random(1)
    with Producer(servers) as producer:
        for first in range(0, records, PIECE):
            numbers = range(first, min(first + PIECE, records))
            which = [each if each < keys else rng.randrange(keys) for each in numbers]
            producer.send_many(
                TOPIC, [b"%012d" % each for each in numbers], [key(each) for each in which]
            )
        producer.flush(600)


def newest(records: int, keys: int) -> array[int]:
    """The newest record of each key, by the same chance."""
    rng = random.Random(1)
    last = array("q", bytes(8 * keys))
    for number in range(records):
        last[number if number < keys else rng.randrange(keys)] = number
    return last


class Reader(threading.Thread):
    """Goes through the topic again and again."""

    def __init__(self, servers: str, wanted: array[int]) -> None:
        super().__init__(daemon=True)
        self.servers, self.wanted = servers, wanted
        self.over = threading.Event()
        self.passes: list[int] = []
        self.wrong: list[str] = []

    def run(self) -> None:
        while not self.over.is_set() and not self.wrong:
            try:
                self.go_through()
            except Exception as error:
                self.wrong.append(f"{type(error).__name__}: {error}")

    def go_through(self) -> None:
        seen = array("q", [-1]) * len(self.wanted)
        count, last = 0, -1
        with Consumer(self.servers, TOPIC, start="earliest", until_end=True) as consumer:
            for record in consumer:
                assert record.key is not None
                assert record.value is not None
                assert record.offset > last
                last = record.offset
                seen[int(record.key[4:])] = int(record.value)
                count += 1
        if seen != self.wanted:
            missing = sum(a != b for a, b in zip(seen, self.wanted, strict=True))
            self.wrong.append(f"{missing} keys have an older value in pass {len(self.passes) + 1}")
        self.passes.append(count)


class Asker(threading.Thread):
    """One request at a time; milliseconds."""

    def __init__(self, servers: str) -> None:
        super().__init__(daemon=True)
        self.servers = servers
        self.found: list[float] = []
        self.over = threading.Event()

    def run(self) -> None:
        with Admin(self.servers) as admin:
            while not self.over.is_set():
                start = time.perf_counter()
                admin.offsets(TOPIC)
                self.found.append((time.perf_counter() - start) * 1000)
                time.sleep(PAUSE_S)

    def end(self) -> str:
        self.over.set()
        self.join()
        found = sorted(self.found)
        return (
            f"p50 {found[len(found) // 2]:.1f} ms, p99 {found[int(len(found) * 0.99)]:.1f} ms, "
            f"worst {found[-1]:.1f} ms of {len(found)}"
        )


def on_a_node(folder: Path, records: int, keys: int, segment: int, before_s: float) -> list[str]:
    """What is wrong."""
    wrong: list[str] = []
    with running_node(folder) as node, Admin(node.servers) as admin:
        admin.create_topic(TOPIC, fsync="never", segment_size=segment)
        pid = os.fork()
        if not pid:
            fill(node.servers, records, keys)
            os._exit(0)
        os.waitpid(pid, 0)
        wanted = newest(records, keys)
        before = size(admin)
        asker = Asker(node.servers)
        asker.start()
        time.sleep(before_s)
        print(f"an offset, before:     {asker.end()}")
        asker, reader = Asker(node.servers), Reader(node.servers, wanted)
        # What is left of a removed record is one byte, where others of its batch are kept.
        small = before * (keys / records) * 2 + records
        start = time.perf_counter()
        admin.alter_topic(TOPIC, cleanup="compact", min_dirty=1, segment_age="1ms")
        asker.start()
        reader.start()
        while size(admin) > small:
            if time.perf_counter() - start > 60 + records / 20_000 or reader.wrong:
                wrong.append("it does not become small")
                break
            time.sleep(0.1)
        took, after = time.perf_counter() - start, size(admin)
        print(f"an offset, meanwhile:  {asker.end()}")
        reader.over.set()
        reader.join()
        last = Reader(node.servers, wanted)
        last.go_through()
        wrong += reader.wrong + last.wrong
        print(
            f"{records} records of {keys} keys: {format_size(before)} became {format_size(after)} in {took:.1f} s, "
            f"which readers went through {len(reader.passes)} times meanwhile"
        )
        print(f"a reader gets {last.passes[-1]} records now")
    return wrong


def size(admin: Admin) -> int:
    """Bytes of the log; asked again where its leader does not say in time."""
    while (found := admin.describe_topic(TOPIC).partitions[0].size) is None:
        time.sleep(0.1)
    return found


def without_a_node(folder: Path, records: int, keys: int, segment: int) -> list[str]:
    """What is wrong."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    storage = ThreadedStorage(RealFiles(folder))
    settings = LogSettings(
        fsync="never", segment_size=segment, retention=None, segment_age=10**9, compact=True, min_dirty=1
    )  # fmt: skip
    log = Log("log", settings, storage)
    holds: list[float] = []

    def until(kind: type) -> None:
        while True:
            select.select([storage], [], [], 1)
            for completion in storage.completions():
                start = time.thread_time()
                event = log.on_event(completion, 0)
                holds.append((time.thread_time() - start) * 1000)
                if isinstance(event, kind):
                    return

    log.open()
    until(Opened)
    rng, number = random.Random(2), 0
    while number < records:
        rows = []
        for _ in range(500):
            which = number if number < keys else rng.randrange(keys)
            rows.append((0, key(which), b"%012d" % number, ()))
            number += 1
        batch = encode_batch(rows, base_timestamp=0, max_timestamp=0)
        stamp(batch, base_offset=log.end_offset, append_time=0, leader_epoch=0)
        log.append(batch, read_header(batch))
        while log.pending_bytes > 64 << 20:
            for completion in storage.completions():
                log.on_event(completion, 0)
    while log.pending_bytes:
        for completion in storage.completions():
            log.on_event(completion, 0)
    log.roll(1 << 60)
    log.want_checkpoint()
    while log.sealed_below < log.segments[-1].base or log.segments[-1].size:
        for completion in storage.completions():
            log.on_event(completion, 0)
    holds.clear()
    start = time.thread_time()
    log.compact(log.written_offset, 0)
    holds.append((time.thread_time() - start) * 1000)
    until(CompactionDone)
    holds.sort()
    print(
        f"the reactor's thread was held {len(holds)} times, the longest for {holds[-1]:.2f} ms, "
        f"all together for {sum(holds):.0f} ms"
    )
    storage.close()
    return [] if holds[-1] < 5 else ["the reactor was held for more than 5 ms"]


def main() -> None:
    """Measures, and prints what was seen."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--records", type=int, default=10_000_000)
    parser.add_argument("--keys", type=int, default=100_000)
    parser.add_argument("--segment", type=int, default=128 << 20, help="bytes of a segment")
    parser.add_argument("--before", type=float, default=BEFORE_S, help="seconds")
    told = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "node").mkdir()
        (Path(folder) / "data" / "log").mkdir(parents=True)
        wrong = on_a_node(Path(folder) / "node", told.records, told.keys, told.segment, told.before)
        wrong += without_a_node(Path(folder) / "data", told.records, told.keys, told.segment)
    for what in wrong:
        print(f"wrong: {what}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
