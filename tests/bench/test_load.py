"""What load generators share: who loses, doubles, changes or reorders a record is found out; nothing is omitted."""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import load
from bench.load import Told
from bench.worker import BenchError, Worker, ring_file

SIZE, LENGTH = 20, 16


@pytest.fixture
def told(tmp_path: Path) -> Told:
    return Told([f"ring={ring_file(tmp_path, SIZE, LENGTH)}", f"size={SIZE}", "counts=40"])


def sent(told: Told, count: int, producer: int = 0) -> list[bytes]:
    values = load.ring(told)
    return [bytes([producer]) + values[number % LENGTH][1:] for number in range(count)]


def test_what_was_sent_passes(told: Told) -> None:
    checker, values = load.Checker(told), sent(told, 40)
    checker.take(0, [load.warm_value(told), *values[:7]])
    checker.take(0, values[7:])
    checker.finish([40])
    assert (checker.records, checker.warm) == (40, 1)


def spoil_lost(values: list[bytes]) -> list[bytes]:
    return values[:9] + values[10:]


def spoil_doubled(values: list[bytes]) -> list[bytes]:
    return [*values[:9], values[8], *values[9:]]


def spoil_reordered(values: list[bytes]) -> list[bytes]:
    return [*values[:9], values[11], values[10], values[9], *values[12:]]


def spoil_changed(values: list[bytes]) -> list[bytes]:
    return [*values[:9], values[9][:-1] + b"\xff", *values[10:]]


def spoil_end(values: list[bytes]) -> list[bytes]:
    return values[:-1]


SPOILS = [spoil_lost, spoil_doubled, spoil_reordered, spoil_changed, spoil_end]


@pytest.mark.parametrize("spoil", SPOILS)
@pytest.mark.parametrize("counts", ["40", "40,40"])
def test_what_is_spoilt_is_found(told: Told, spoil: object, counts: str) -> None:
    told._values["counts"] = counts
    checker = load.Checker(told)
    others = sent(told, 40, 1) if "," in counts else []
    with pytest.raises(ValueError):  # noqa: PT012 (some are found at once, some at the end)
        checker.take(0, [*others, *spoil(sent(told, 40))])  # type: ignore[operator]
        checker.finish(load.counts_of(told))


@pytest.mark.parametrize("spoil", SPOILS)
def test_what_is_spoilt_is_found_in_several_partitions(told: Told, spoil: object) -> None:
    told._values["lanes"] = 2
    values = sent(told, 40)
    good = load.Checker(told)
    for lane in (0, 1):
        good.take(lane, values[lane::2])
    good.finish([40])
    bad = load.Checker(told)
    with pytest.raises(ValueError):  # noqa: PT012
        for lane in (0, 1):
            bad.take(lane, spoil(values)[lane::2])  # type: ignore[operator]
        bad.finish([40])


@pytest.mark.parametrize("lanes", [1, 2])
def test_records_that_nobody_sent_are_found(told: Told, lanes: int) -> None:
    told._values.update(counts="40,40", lanes=lanes)
    checker = load.Checker(told)
    checker.take(0, [*sent(told, 40), *sent(told, 40, 1), *sent(told, 1, 2)])
    with pytest.raises(ValueError, match=r"\[2\]"):
        checker.finish([40, 40])
    beyond = bytes([0]) + LENGTH.to_bytes(3, "big") + bytes(SIZE - load.HEAD)
    with pytest.raises(ValueError, match="never sent"):
        load.Checker(told).take(0, [beyond])


@pytest.mark.parametrize("spoil", [spoil_lost, spoil_doubled, spoil_end])
def test_ends_see_that_records_are_missing_or_too_many(told: Told, spoil: object) -> None:
    values = sent(told, 40)
    good = load.Ends(told)
    good.take(None, [load.warm_value(told), *values[:11]])
    good.take(None, values[11:])
    good.finish([40])
    bad = load.Ends(told)
    with pytest.raises(ValueError):  # noqa: PT012
        bad.take(None, spoil(values))  # type: ignore[operator]
        bad.finish([40])


class Clock:
    """Time that only passes when somebody waits or works."""

    def __init__(self) -> None:
        self.now = 0

    def monotonic_ns(self) -> int:
        return self.now

    def monotonic(self) -> float:
        return self.now / 1e9

    def wait(self, seconds: float) -> None:
        self.now += int(seconds * 1e9) + 1


def test_a_producer_that_is_held_up_makes_what_waits_late(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(
        load, "time", SimpleNamespace(monotonic_ns=clock.monotonic_ns, monotonic=clock.monotonic)
    )
    told = Told(["rate=100", "seconds=1", "size=20", "skip=0"])
    late = load.Latencies(told)

    def send(value: bytes) -> None:
        if value[load.HEAD - 1] == 50:
            clock.wait(0.2)  # one send blocks for twenty records' time
        late.take([value])

    assert load.paced(told, send, clock.wait) == 100
    found = late.result()
    assert found["worst"] == pytest.approx(200, abs=1)
    assert found["p90"] > 90, "the records behind it waited too"
    assert found["p50"] < 1


def test_latencies_notice_a_record_that_is_missing() -> None:
    late = load.Latencies(Told(["rate=10", "seconds=1", "size=20"]))
    late.take([load.stamped(0, 0, b"")])
    with pytest.raises(ValueError):
        late.take([load.stamped(2, 0, b"")])


def test_percentiles_are_of_the_sorted_values() -> None:
    found = load.percentiles(n * 1_000_000 for n in range(1000, 0, -1))
    assert found == {"p50": 501, "p90": 901, "p99": 991, "p99.9": 1000, "worst": 1000}


def test_numbers_tell_what_became_of_what_was_acknowledged() -> None:
    assert load.compact([5, 1, 2, 3, 3, 9]) == [[1, 3], [5, 5], [9, 9]]
    found = load.Numbers(Told(["numbers=[[0,4],[7,7]]"]))
    found.take([load.numbered(n) for n in (0, 1, 1, 4, 2, 8)])
    assert found.result() == {"lost": 2, "doubled": 1, "out_of_order": 1}


GENERATOR = """
import sys
sys.path.insert(0, {root!r})
from bench import load

def consume(told):
    values = load.ring(told)[:told.reads]
    return load.stored(told, lambda: [(0, values)])

load.main({{"consume": consume}})
"""


@pytest.mark.parametrize("reads", [16, 15])
def test_a_generator_that_loses_a_record_fails(tmp_path: Path, reads: int) -> None:
    script = tmp_path / "generator.py"
    script.write_text(GENERATOR.format(root=str(Path(load.__file__).parents[1])))
    ring = ring_file(tmp_path, SIZE, LENGTH)
    told = {"size": SIZE, "ring": ring, "counts": LENGTH, "check": "all", "reads": reads}
    with Worker([sys.executable, str(script)], "consume", **told) as worker:
        worker.ready(30).go()
        if reads == LENGTH:
            assert worker.result(30)["records"] == 0, "counted from the first piece on"
        else:
            with pytest.raises(BenchError, match="15 records came, sent 16"):
                worker.result(30)


def test_values_differ_and_say_their_number(tmp_path: Path) -> None:
    whole = ring_file(tmp_path, 100, 50).read_bytes()
    values = [whole[at : at + 100] for at in range(0, len(whole), 100)]
    assert [struct.unpack(">I", value[:4])[0] for value in values] == list(range(50))
    assert len({value[4:] for value in values}) > 40
