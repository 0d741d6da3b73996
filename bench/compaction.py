"""A topic of many records and few keys shrinks to its keys while readers go through it: what they see, who notices.

    python -m bench.compaction [--records 10000000] [--keys 100000]

One node with one topic of one partition. It is filled, then altered to `cleanup: compact`. A reader goes through the
whole of it again and again, and must get each key's newest value and no error. Beside it a client asks the node for an
offset every few milliseconds, before and while it compacts: how long it waits shows what compaction takes from others.
Ends with status 1 where something is not as it should be.

Then the same log work without a node, in this process: how long any one call into the log keeps the reactor's thread,
by that thread's CPU time.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import select
import sys
import tempfile
import threading
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zbroker import Admin, Consumer, Producer
from zbroker.log import Closed, CompactionDone, Log, LogSettings, Opened
from zbroker.node.files import RealFiles
from zbroker.node.run import SWITCH_INTERVAL_S
from zbroker.node.storage import ThreadedStorage
from zbroker.protocol.batch import encode_batch, read_header, stamp
from zbroker.testing.nodes import running_node

TOPIC = "table"
PIECE = 10_000
MIB = 1 << 20
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


class Reader:
    """A process that goes through the topic again and again."""

    def __init__(self, servers: str, wanted: array[int]) -> None:
        context = multiprocessing.get_context("spawn")
        self.over = context.Event()
        self.told: Any = context.Queue()
        self.process = context.Process(
            target=read_on, args=(servers, wanted, self.over, self.told), daemon=True
        )
        self.process.start()

    def end(self) -> tuple[list[int], list[str]]:
        """How many records it got in each pass, and what was wrong."""
        self.over.set()
        passes, wrong = self.told.get(timeout=600)
        self.process.join()
        return passes, wrong


def read_on(servers: str, wanted: array[int], over: Any, told: Any) -> None:
    """What the process does; at least one pass."""
    passes: list[int] = []
    wrong: list[str] = []
    while not wrong and not (over.is_set() and passes):
        try:
            passes.append(go_through(servers, wanted, wrong))
        except Exception as error:
            wrong.append(f"{type(error).__name__}: {error}")
    told.put((passes, wrong))


def go_through(servers: str, wanted: array[int], wrong: list[str]) -> int:
    """One pass; how many records there were."""
    seen = array("q", [-1]) * len(wanted)
    count, last = 0, -1
    with Consumer(servers, TOPIC, start="earliest", until_end=True) as consumer:
        for record in consumer:
            assert record.key is not None
            assert record.value is not None
            if record.offset <= last:
                wrong.append(f"offset {record.offset} came after {last}")
            last = record.offset
            seen[int(record.key[4:])] = int(record.value)
            count += 1
    if seen != wanted:
        missing = sum(a != b for a, b in zip(seen, wanted, strict=True))
        wrong.append(f"{missing} keys have an older value")
    return count


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
        reader, asker = Reader(node.servers, wanted), Asker(node.servers)
        asker.start()
        time.sleep(before_s)
        print(f"an offset, before:     {asker.end()}")
        # What is left of a removed record is one byte, where others of its batch are kept.
        small = before * (keys / records) * 2 + records
        asker = Asker(node.servers)
        asker.start()
        start = time.perf_counter()
        admin.alter_topic(TOPIC, cleanup="compact", min_dirty=1, segment_age="1ms")
        while size(admin) > small:
            if time.perf_counter() - start > 60 + records / 20_000:
                wrong.append("it does not become small")
                break
            time.sleep(0.1)
        took, after = time.perf_counter() - start, size(admin)
        print(f"an offset, meanwhile:  {asker.end()}")
        passes, told = reader.end()
        left = go_through(node.servers, wanted, wrong)
        wrong += told
        print(
            f"{records} records of {keys} keys: {before / MIB:.1f} MiB became {after / MIB:.1f} MiB in {took:.1f} s; "
            f"a reader went through it {len(passes)} times meanwhile"
        )
        print(f"a reader gets {left} records now")
    return wrong


def size(admin: Admin) -> int:
    """Bytes of the log; asked again where its leader does not say in time."""
    while (found := admin.describe_topic(TOPIC).partitions[0].size) is None:
        time.sleep(0.1)
    return found


class Bare:
    """A log over real files and threads, without a node."""

    def __init__(self, folder: Path, segment: int) -> None:
        self.storage = ThreadedStorage(RealFiles(folder))
        self.log = Log("log", LogSettings(
            fsync="never", segment_size=segment, retention=None, segment_age=10**9, compact=True,
            min_dirty=1,
        ), self.storage)  # fmt: skip
        self.holds: list[float] = []
        """ms of CPU time of this thread, of each call into the log."""
        self.log.open()
        self.until(Opened)

    def until(self, wanted: type | Callable[[], bool]) -> None:
        """Works as the reactor does."""
        while True:
            completions = self.storage.run_quick()
            if not completions:
                select.select([self.storage], [], [], 0.1)
                completions = self.storage.completions()
            for completion in completions:
                event = self.timed(lambda: self.log.on_event(completion, 0))  # noqa: B023
                if isinstance(wanted, type) and isinstance(event, wanted):
                    return
            if not isinstance(wanted, type) and wanted():
                return

    def timed(self, call: Callable[[], Any]) -> Any:
        start = time.thread_time()
        try:
            return call()
        finally:
            self.holds.append((time.thread_time() - start) * 1000)


def fill_bare(folder: Path, records: int, keys: int, segment: int) -> None:
    """The same records, in batches of 500."""
    bare = Bare(folder, segment)
    log, rng = bare.log, random.Random(1)
    for first in range(0, records, 500):
        rows = [
            (0, key(each if each < keys else rng.randrange(keys)), b"%012d" % each, ())
            for each in range(first, min(first + 500, records))
        ]
        batch = encode_batch(rows, base_timestamp=0, max_timestamp=0)
        stamp(batch, base_offset=log.end_offset, append_time=0, leader_epoch=0)
        log.append(batch, read_header(batch))
        if log.pending_bytes > 16 << 20:
            bare.until(lambda: not log.pending_bytes)
    bare.until(lambda: not log.pending_bytes)
    log.close()
    bare.until(Closed)


def without_a_node(folder: Path, records: int, keys: int, segment: int) -> list[str]:
    """What is wrong."""
    pid = os.fork()
    if not pid:  # so that what this process frees is what compaction took
        fill_bare(folder, records, keys, segment)
        os._exit(0)
    os.waitpid(pid, 0)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    bare = Bare(folder, segment)
    log = bare.log
    log.roll(1 << 60)
    log.want_checkpoint()
    bare.until(lambda: log.sealed_below == log.segments[-1].base == records)
    bare.holds.clear()
    bare.timed(lambda: log.compact(log.written_offset, 0))
    bare.until(CompactionDone)
    holds = sorted(bare.holds)
    print(
        f"the reactor's thread was held {len(holds)} times, the longest for {holds[-1]:.2f} ms, "
        f"all together for {sum(holds):.0f} ms"
    )
    bare.storage.close()
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
