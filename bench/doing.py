"""What several scenarios do: records are produced, read back and checked, read live.

Every number that a scenario gives comes from a run whose records were all there, once and in order.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bench.frame import Ground
from bench.peers.base import Client
from bench.worker import BenchError, Worker, together

RATE = "records/s"


@dataclass(frozen=True)
class Produced:
    """What producers have sent.

    Attributes:
        counts: records of each producer.
        rate: records a second, from the first `send` until the last acknowledgement.
        checked: the generator has counted for itself, and its records have no numbers.
    """

    counts: tuple[int, ...]
    rate: float
    start: int
    end: int
    checked: bool = False


def produced(found: Sequence[dict[str, Any]]) -> Produced:
    """Of what the generators say."""
    start, end = min(f["start"] for f in found), max(f["end"] for f in found)
    counts = tuple(f["records"] for f in found)
    if not all(counts):
        raise BenchError("a producer sent nothing")
    return Produced(counts, sum(counts) / (end - start) * 1e9, start, end, "checked" in found[0])


def producers(
    ground: Ground,
    client: Client,
    topic: str,
    *,
    size: int,
    count: int = 1,
    lanes: int = 1,
    seconds: float | None = None,
    action: str = "produce",
    **told: Any,
) -> list[Worker]:
    """Producers that are set up and wait."""  # fmt: skip
    told = {
        "topic": topic, "size": size, "ring": ground.ring(size, lanes), "lanes": lanes,
        "seconds_ms": int((seconds or ground.plan.seconds) * 1000), **told,
    }  # fmt: skip
    return [ground.worker(client, action, producer=number, **told) for number in range(count)]


@contextlib.contextmanager
def all_of(workers: Sequence[Worker]) -> Iterator[Sequence[Worker]]:
    """Load generators, gone at the end."""
    try:
        yield workers
    finally:
        for worker in workers:
            worker.close()


def produce(ground: Ground, client: Client, topic: str, **told: Any) -> Produced:
    """Has producers send for a while."""
    with all_of(producers(ground, client, topic, **told)) as workers:
        return produced(together(workers))


def read_back(
    ground: Ground,
    client: Client,
    topic: str,
    sent: Produced,
    *,
    size: int,
    lanes: int = 1,
    check: str = "all",
    action: str = "consume",
    **told: Any,
) -> dict[str, Any]:
    """Reads everything from the beginning.

    Args:
        check: `all`: every record is looked at; `ends`: the first and the last of each piece.
    """  # fmt: skip
    with ground.worker(
        client, action, topic=topic, size=size, ring=ground.ring(size, lanes), lanes=lanes, check=check,
        counts=",".join(map(str, sent.counts)), **told,
    ) as worker:  # fmt: skip
        return worker.ready().go().result()


def verify(
    ground: Ground, topic: str, sent: Produced, *, size: int, lanes: int = 1, **told: Any
) -> None:
    """Fails where a record is lost, doubled, changed or out of order."""
    if not sent.checked:
        read_back(ground, ground.reader, topic, sent, size=size, lanes=lanes, **told)


@contextlib.contextmanager
def listeners(
    ground: Ground,
    client: Client,
    topic: str,
    consumers: int,
    *,
    size: int,
    processes: int = 8,
    numbered: bool = True,
) -> Iterator[list[Worker]]:
    """So many live consumers, in up to so many processes, all of which listen.

    Args:
        numbered: whether the records that come are numbered; if not, they are only counted.
    """  # fmt: skip
    share, rest = divmod(consumers, min(processes, consumers))
    counts = [share + (number < rest) for number in range(min(processes, consumers))]
    told = {"topic": topic, "size": size, "ring": ground.ring(size), "lanes": 1 if numbered else 2}
    with all_of(
        [ground.worker(client, "live", consumers=count, **told) for count in counts]
    ) as workers:
        for worker in workers:
            worker.ready()
        yield list(workers)
