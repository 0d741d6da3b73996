"""The side of a load generator: a process of its own that is told by words, waits for its start, and says one line.

    python -m bench.peers.load.NAME ACTION key=value …

Owns what generators in Python share: the arguments, the gate (`ready`, then a line on standard input), the ring of
values, the check of what was delivered, the pace and the percentiles. Those in Java and Go do the same by the same
words. Uses the standard library alone, since each runs on the Python of its own client's installation. Never decides
what is measured.

A value begins with the producer's number (one byte) and the record's number in the ring (three, big-endian); a producer
sends the ring round and round, so that what is lost, doubled or out of order shows. `WARM` is the number of those who
only warm a connection: nobody checks their records. For latencies the time at which a record was due follows, eight
bytes of nanoseconds of the monotonic clock, which all processes of a machine share.
"""

from __future__ import annotations

import collections
import itertools
import json
import operator
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

WARM = 255
HEAD = 4
STAMPED = HEAD + 8
PERCENTILES = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999), ("worst", 1.0))
PERIOD = 0.002
"""Seconds between two records of the producer that waits for a fail-over."""
FAILOVER_MAX = 100.0


class Told:
    """The arguments: `told.size`, `told.topic`, …; numbers where they look like numbers."""

    def __init__(self, words: Iterable[str]) -> None:
        self._values: dict[str, Any] = {}
        for word in words:
            name, _, value = word.partition("=")
            self._values[name] = int(value) if value.lstrip("-").isdigit() else value

    def __getattr__(self, name: str) -> Any:
        try:
            return self._values[name]
        except KeyError:
            raise AttributeError(f"nobody said {name}=…") from None

    def get(self, name: str, default: Any) -> Any:
        """An argument that may be left out."""
        return self._values.get(name, default)


def gate() -> str:
    """Says that all is set up, and waits for the start; returns the line that gave it."""
    print("ready", flush=True)
    line = sys.stdin.readline()
    if not line:
        sys.exit(1)
    return line.strip()


def main(actions: dict[str, Callable[[Told], dict[str, Any]]]) -> None:
    """Does what the command line says, and prints what came of it."""
    print(json.dumps(actions[sys.argv[1]](Told(sys.argv[2:]))), flush=True)


# Values ---


def ring(told: Told) -> list[bytes]:
    """The values of one producer, from the file that all generators read."""
    size, producer = told.size, told.get("producer", 0)
    whole = Path(told.ring).read_bytes()
    first = bytes([producer])
    return [first + whole[at + 1 : at + size] for at in range(0, len(whole), size)]


def warm_value(told: Told) -> bytes:
    """A value that nobody checks."""
    return bytes([WARM]) + bytes(told.size - 1)


def repeated(seconds: float, once: Callable[[], Any]) -> int:
    """How many times `once` was called until the time was up; at least once."""
    end, rounds = time.monotonic() + seconds, 0
    while True:
        once()
        rounds += 1
        if time.monotonic() >= end:
            return rounds


class Checker:
    """What was read, against what producers sent: nothing lost, doubled, changed or out of order.

    With one partition each record's number follows the last of its producer. With several, numbers of a producer only
    grow within a partition (by less than three quarters of the ring), and each number comes as often as any other.
    """

    def __init__(self, told: Told) -> None:
        self._strict = told.get("lanes", 1) == 1
        values = ring(told)
        self._length = len(values)
        alone = self._strict and "," not in str(told.get("counts", "0"))
        self._expected = values * 4 if alone else []
        self._bodies = [value[1:] for value in values]
        self._last: dict[tuple[Any, int], int] = {}
        self._seen: dict[int, collections.Counter[int]] = {}
        self.records = 0
        self.warm = 0

    def take(self, lane: Any, values: Sequence[bytes]) -> None:
        """Values in the order in which they came, of one partition."""
        length = self._length
        if self._expected and len(values) <= 3 * length:
            at = self.records % length
            if values == self._expected[at : at + len(values)]:
                self.records += len(values)
                self._last[lane, 0] = (self.records - 1) % length
                return
        for producer in sorted({value[0] for value in values}):
            if producer == WARM:
                self.warm += sum(value[0] == WARM for value in values)
            else:
                self._take_of(lane, producer, [v for v in values if v[0] == producer])

    def _take_of(self, lane: Any, producer: int, values: Sequence[bytes]) -> None:
        """The same of one producer: whole lists at a time, since there are millions."""
        of = f"of producer {producer}"
        numbers = [int.from_bytes(value[1:HEAD], "big") for value in values]
        for number in numbers:
            if number >= self._length:
                raise ValueError(f"{lane}: record {number} {of} was never sent")
        first = self._last.get((lane, producer), -1 if self._strict else None)
        before = numbers[:-1] if first is None else [first, *numbers[:-1]]
        after = numbers[1:] if first is None else numbers
        if any(map(self._wrong, set(map(operator.sub, after, before)))):
            last, number = next(
                (a, b) for a, b in zip(before, after, strict=True) if self._wrong(b - a)
            )
            raise ValueError(
                f"{lane}: after {last} {of} came {number}: lost, doubled or out of order"
            )
        self._last[lane, producer] = numbers[-1]
        for number, value in zip(numbers, values, strict=True):
            if value[1:] != self._bodies[number]:
                raise ValueError(f"{lane}: record {number} {of} was changed")
        self._seen.setdefault(producer, collections.Counter()).update(numbers)
        self.records += len(values)

    def _wrong(self, step: int) -> bool:
        """Whether a record may not come so many numbers after the one before it."""
        step = step % self._length or self._length
        return step != 1 and (self._strict or step > self._length * 3 // 4)

    def finish(self, counts: Sequence[int]) -> None:
        """Nothing more comes; `counts` says how many records each producer sent."""
        if self._expected:
            if self.records != counts[0]:
                raise ValueError(f"{self.records} records came, sent {counts[0]}")
            return
        if strangers := self._seen.keys() - range(len(counts)):
            raise ValueError(f"records of producers came that sent none: {sorted(strangers)}")
        for producer, count in enumerate(counts):
            seen = self._seen.get(producer, collections.Counter())
            rounds, rest = divmod(count, self._length)
            for number in range(self._length):
                if seen[number] != rounds + (number < rest):
                    raise ValueError(
                        f"record {number} of producer {producer} came {seen[number]} times,"
                        f" sent {rounds + (number < rest)}"
                    )


# Latency ---


def paced(told: Told, send: Callable[[bytes], Any], wait: Callable[[float], Any]) -> int:
    """Sends each record when it is due, and says in it when that was, however late it was sent.

    So a producer that was held up makes every record late that waited meanwhile: nothing is omitted.

    Args:
        wait: lets the client work for so many seconds, or until the next record is due.
    """
    count = told.rate * told.seconds
    start = time.monotonic_ns() + 1_000_000
    pad = bytes(told.size - STAMPED)
    for number in range(count):
        due = start + number * 1_000_000_000 // told.rate
        while (left := due - time.monotonic_ns()) > 0:
            wait(left / 1e9)
        send(stamped(number, due, pad))
    return count


def stamped(number: int, due: int, pad: bytes) -> bytes:
    """A value that says when it was due."""
    return struct.pack(">I", number & 0xFFFFFF) + struct.pack("<q", due) + pad


class Latencies:
    """From when each record was due until now; those of the first seconds are left out."""

    def __init__(self, told: Told) -> None:
        self._count = told.rate * told.seconds
        self._skip = told.rate * told.get("skip", 1)
        self._found: list[int] = []

    def take(self, values: Iterable[bytes]) -> bool:
        """Values that came now; whether these were all."""
        now, found = time.monotonic_ns(), self._found
        for value in values:
            if value[0] == WARM:
                continue
            if int.from_bytes(value[1:HEAD], "big") != len(found) & 0xFFFFFF:
                raise ValueError(f"instead of record {len(found)} came {value[:HEAD]!r}")
            found.append(now - struct.unpack_from("<q", value, HEAD)[0])
        return len(found) >= self._count

    def result(self) -> dict[str, Any]:
        """Percentiles in milliseconds."""
        return {"records": len(self._found), **percentiles(self._found[self._skip :])}


def percentiles(nanoseconds: Iterable[int]) -> dict[str, float]:
    """Milliseconds at each of `PERCENTILES`."""
    found = sorted(nanoseconds)
    return {
        name: round(found[min(len(found) - 1, int(len(found) * share))] / 1e6, 3)
        for name, share in PERCENTILES
    }


# Fail-over ---


class Acknowledged:
    """When each record of a producer that sends every 2 ms was acknowledged, and when it may stop."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.times: list[int] = []
        self.errors = 0
        self._fault = 0
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        print("ready", flush=True)
        line = sys.stdin.readline()
        self._fault = int(line) if line.strip() else 1

    def take(self, number: int) -> None:
        """A record was acknowledged now."""
        self.times.append(time.monotonic_ns())
        self.numbers.append(number)

    def over(self) -> bool:
        """Whether two quiet seconds have passed after the fault, or far too many."""
        fault, now = self._fault, time.monotonic_ns()
        if not fault:
            return False
        if now - fault > FAILOVER_MAX * 1e9:
            return True
        recent = [t for t in self.times[-600:] if t > now - 1_000_000_000]
        return now - fault > 3_000_000_000 and len(recent) > 20 and min(recent) < now - 900_000_000

    def result(self) -> dict[str, Any]:
        """The longest gap that ended after the fault, and what was acknowledged."""
        times = [*self.times, time.monotonic_ns()] if not self._recovered() else self.times
        gaps = [(b - a) / 1e6 for a, b in itertools.pairwise(times) if b > self._fault]
        return {
            "gap_ms": round(max(gaps), 1),
            "recovered": self._recovered(),
            "acked": len(self.numbers),
            "numbers": compact(self.numbers),
            "errors": self.errors,
        }

    def _recovered(self) -> bool:
        return bool(self.times) and self.times[-1] > self._fault


def compact(numbers: Iterable[int]) -> list[list[int]]:
    """Numbers as ranges from first to last."""
    found: list[list[int]] = []
    for number in sorted(set(numbers)):
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return found


def numbered(number: int) -> bytes:
    """The value of the producer that waits for a fail-over."""
    return b"%012d" % number + bytes(88)


class Numbers:
    """Reads such a topic back: how many acknowledged records are not there, how many are there twice."""

    def __init__(self, told: Told) -> None:
        self._acked = json.loads(told.numbers)
        self.found: list[int] = []

    def take(self, values: Iterable[bytes]) -> None:
        """Values as they were read."""
        self.found += [int(value[:12]) for value in values]

    def missing(self) -> int:
        """Acknowledged records that have not been read."""
        there = set(self.found)
        return sum(n not in there for a, b in self._acked for n in range(a, b + 1))

    def result(self) -> dict[str, Any]:
        """What became of what was acknowledged."""
        ordered = list(dict.fromkeys(self.found))
        return {
            "lost": self.missing(),
            "doubled": len(self.found) - len(ordered),
            "out_of_order": sum(b < a for a, b in itertools.pairwise(ordered)),
        }


# Reading ---


class Ends:
    """Counts what is read, and checks the first and the last record of each piece: what costs a reader next to nothing.

    Only with one producer and one partition can more than the number be checked.
    """

    def __init__(self, told: Told) -> None:
        self._strict = told.get("lanes", 1) == 1
        self._length = len(Path(told.ring).read_bytes()) // told.size
        self.records = 0
        self.warm = 0

    def take(self, _lane: Any, values: Sequence[bytes]) -> None:
        """A piece of values, in the order in which they came."""
        if values[0][0] == WARM or values[-1][0] == WARM:
            count = len(values)
            values = [value for value in values if value[0] != WARM]
            self.warm += count - len(values)
            if not values:
                return
        if self._strict:
            before = self.records
            for value, at in ((values[0], before), (values[-1], before + len(values) - 1)):
                if int.from_bytes(value[1:HEAD], "big") != at % self._length:
                    raise ValueError(f"record {at} is not the one that was sent")
        self.records += len(values)

    def finish(self, counts: Sequence[int]) -> None:
        """Nothing more comes."""
        if self.records != sum(counts):
            raise ValueError(f"{self.records} records came, sent {sum(counts)}")


class Span:
    """From the first piece that was read until the last: who connects slowly does not read slowly."""

    def __init__(self) -> None:
        self._first: tuple[int, int] | None = None
        self._last = (0, 0)

    def take(self, records: int) -> None:
        """So many records have been read now."""
        self._last = (time.monotonic_ns(), records)
        if self._first is None:
            self._first = self._last

    def result(self) -> dict[str, Any]:
        """Records after the first piece, and how long they took."""
        assert self._first is not None, "nothing was read"
        return {
            "start": self._first[0],
            "end": self._last[0],
            "records": self._last[1] - self._first[1],
        }


def checker(told: Told) -> Checker | Ends:
    """What looks at the records that are read: all of them with `check=all`."""
    return Checker(told) if told.get("check", "ends") == "all" else Ends(told)


def counts_of(told: Told) -> list[int]:
    """How many records each producer sent: `counts=4096,4096`."""
    return [int(part) for part in str(told.counts).split(",")]


def stored(
    told: Told, pieces: Callable[[], Iterable[tuple[Any, Sequence[bytes]]]]
) -> dict[str, Any]:
    """Reads what is stored, from the beginning; `pieces` connects and yields (partition, values)."""
    seen, counts = checker(told), counts_of(told)
    wanted = sum(counts)
    gate()
    span = Span()
    for lane, values in pieces():
        seen.take(lane, values)
        span.take(seen.records + seen.warm)
        if seen.records >= wanted:
            break
    seen.finish(counts)
    return span.result()


class Live:
    """Readers of what is sent meanwhile, each in a thread of its own; how many records come is said at the end."""

    def __init__(self, told: Told) -> None:
        self._told = told
        self._wanted: int | None = None
        self._failed: list[BaseException] = []
        self._up = threading.Barrier(told.get("consumers", 1) + 1)
        self.ends: list[int] = []

    def run(
        self, read: Callable[[Callable[[], None]], Iterable[tuple[Any, Sequence[bytes]]]]
    ) -> dict[str, Any]:
        """`read(up)` yields (partition, values), empty at least every second, and calls `up` once it listens."""
        threads = [
            threading.Thread(target=self._one, args=(read,), daemon=True)
            for _ in range(self._told.get("consumers", 1))
        ]
        for thread in threads:
            thread.start()
        self._up.wait(60)
        self._wanted = int(gate())
        for thread in threads:
            thread.join(120)
        if self._failed or len(self.ends) < len(threads):
            raise RuntimeError(f"a consumer failed: {self._failed}")
        return {"end": max(self.ends), "records": self._wanted * len(threads)}

    def _one(
        self, read: Callable[[Callable[[], None]], Iterable[tuple[Any, Sequence[bytes]]]]
    ) -> None:
        seen, last, quiet = Ends(self._told), 0, time.monotonic()
        try:
            for lane, values in read(self._up.wait):
                if values:
                    seen.take(lane, values)
                    last, quiet = time.monotonic_ns(), time.monotonic()
                if self._wanted is not None:
                    if seen.records >= self._wanted:
                        break
                    if time.monotonic() - quiet > 20:
                        raise TimeoutError(f"only {seen.records} of {self._wanted} records came")
                else:
                    quiet = time.monotonic()
            assert self._wanted is not None
            seen.finish([self._wanted])
            self.ends.append(last)
        except BaseException as error:
            self._failed.append(error)
            self._up.abort()


def serve(operations: dict[str, Callable[..., Any]]) -> dict[str, Any]:
    """Does errands for a driver, one a line, until standard input ends: make a topic, ask who leads."""
    print("ready", flush=True)
    for line in sys.stdin:
        told = json.loads(line)
        try:
            answer = {"answer": operations[told.pop("op")](**told)}
        except Exception as error:
            answer = {"error": repr(error)}
        print(json.dumps(answer), flush=True)
    return {}


async def paced_in_loop(told: Told, publish: Callable[[bytes], Any]) -> int:
    """As `paced`, for asyncio: a thread keeps the time, since a loop's sleep is as coarse as a millisecond."""
    import asyncio

    loop, due_values = asyncio.get_running_loop(), asyncio.Queue[bytes | None]()

    def keep_time() -> None:
        paced(
            told, lambda value: loop.call_soon_threadsafe(due_values.put_nowait, value), time.sleep
        )
        loop.call_soon_threadsafe(due_values.put_nowait, None)

    thread = threading.Thread(target=keep_time)
    thread.start()
    count = 0
    while (value := await due_values.get()) is not None:
        await publish(value)
        count += 1
    thread.join()
    return count
