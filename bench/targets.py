"""What zbroker is meant to reach: ratios within one run, each with what it is measured against.

A target names a case, zbroker's client, whose figures it is compared with, and the least ratio (how many times better;
1 is as good, 0.5 is half as good). Measures nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from bench.peers.base import Client, System
from bench.results import Results, Row, best, ratio, significant

FASTEST, PYTHON = "", "python"


class Target(NamedTuple):
    """One of them.

    Attributes:
        what: in words.
        case: scenario and case of zbroker's figure.
        client: zbroker's client; the fastest, if left empty.
        metric: which figure.
        other: the system that it is compared with.
        least: the ratio that is aimed at.
        others: its client; the fastest, if left out. `python` is the best of those in Python.
        other_case: its case, where that is another one.
    """

    what: str
    case: tuple[str, str]
    client: str
    metric: str
    other: str
    least: float
    others: str = FASTEST
    other_case: tuple[str, str] | None = None


RATE = "records/s"
DELIVERED = "delivered/s"
SMALL, LARGE = ("produce", "100 B, fsync never"), ("produce", "1 KiB, fsync never")
SMALL_SAFE, LARGE_SAFE = ("produce", "100 B, fsync always"), ("produce", "1 KiB, fsync always")
SMALL_THREE, LARGE_THREE = ("replicated", "100 B"), ("replicated", "1 KiB")
ONE, THREE = (
    ("latency", "1,000/s, one node, fsync interval"),
    ("latency", "1,000/s, three nodes, fsync never"),
)
FAN, REPLAY = ("fanout", "4 consumers"), ("replay", "100 B, warm")
KILL, FREEZE = ("leader_goes", "kill -9"), ("leader_goes", "SIGSTOP")
BENCHMARK, SUB = "redis-benchmark -c 50 -P 64", "java, sub-entries of 100"

TARGETS = (
    Target("100 B, send, beside the yardstick", SMALL, "send", RATE, "limit", 0.5),
    Target("100 B, send, beside Kafka's Java client", SMALL, "send", RATE, "kafka", 2.5, "java"),
    Target("100 B, send, beside Redis", SMALL, "send", RATE, "redis", 2.5, BENCHMARK),
    Target("100 B, send_many, beside the yardstick", SMALL, "send_many", RATE, "limit", 0.75),
    Target("100 B, send_many, beside RabbitMQ with sub-entries", SMALL, "send_many", RATE, "rabbitmq", 1.0, SUB),
    Target("100 B, send, both at their defaults (fsync always beside never)",
           SMALL_SAFE, "send", RATE, "kafka", 2.0, FASTEST, SMALL),
    Target("1 KiB beside Kafka", LARGE, "send", RATE, "kafka", 1.4, PYTHON),
    Target("1 KiB beside Redis", LARGE, "send", RATE, "redis", 1.4),
    Target("1 KiB beside NATS", LARGE, "send", RATE, "nats", 1.4),
    Target("1 KiB beside RabbitMQ without sub-entries", LARGE, "send", RATE, "rabbitmq", 1.4, "java"),
    Target("1 KiB, fsync before the answer, beside Redis", LARGE_SAFE, "send", RATE, "redis", 1.2),
    Target("1 KiB, fsync before the answer, beside Kafka", LARGE_SAFE, "send", RATE, "kafka", 2.2),
    Target("three replicas, 100 B, beside RabbitMQ without sub-entries",
           SMALL_THREE, "send_many", RATE, "rabbitmq", 1.8, "java"),
    Target("three replicas, 100 B, beside RabbitMQ with sub-entries",
           SMALL_THREE, "send_many", RATE, "rabbitmq", 1.0, SUB),
    Target("three replicas, 100 B, beside Kafka", SMALL_THREE, "send_many", RATE, "kafka", 2.5),
    Target("three replicas, 1 KiB, beside RabbitMQ without sub-entries",
           LARGE_THREE, "send_many", RATE, "rabbitmq", 1.3, "java"),
    Target("three replicas, 1 KiB, beside NATS", LARGE_THREE, "send_many", RATE, "nats", 1.3),
    Target("three replicas, 1 KiB, beside Kafka", LARGE_THREE, "send_many", RATE, "kafka", 2.7),
    Target("latency at 1,000/s, p50, beside NATS", ONE, "send", "p50 ms", "nats", 1.0),
    Target("latency at 1,000/s, p99, beside NATS", ONE, "send", "p99 ms", "nats", 1.0),
    Target("latency at 1,000/s, p50, beside Kafka", ONE, "send", "p50 ms", "kafka", 1.0),
    Target("latency at 1,000/s, p99, beside Kafka", ONE, "send", "p99 ms", "kafka", 1.0),
    Target("latency of three replicas, p50, beside NATS", THREE, "send", "p50 ms", "nats", 1.0),
    Target("latency of three replicas, p99, beside NATS", THREE, "send", "p99 ms", "nats", 0.5),
    Target("four consumers in Python beside RabbitMQ's in Java", FAN, FASTEST, DELIVERED, "rabbitmq", 1.5),
    Target("four consumers beside Kafka", FAN, FASTEST, DELIVERED, "kafka", 2.4),
    Target("four consumers beside NATS", FAN, FASTEST, DELIVERED, "nats", 5.0),
    Target("four consumers beside Redis", FAN, FASTEST, DELIVERED, "redis", 5.0),
    Target("replay of 100 B beside tuned confluent-kafka", REPLAY, "Consumer", RATE, "kafka", 1.1, PYTHON),
    Target("replay of 100 B beside Kafka's Java client", REPLAY, "Consumer", RATE, "kafka", 1.1, "java"),
    Target("replay of 100 B beside rstream", REPLAY, "Consumer", RATE, "rabbitmq", 2.5, PYTHON),
    Target("fail-over after kill -9 beside Kafka", KILL, "send", "gap ms", "kafka", 50.0),
    Target("fail-over after kill -9 beside NATS", KILL, "send", "gap ms", "nats", 50.0),
    Target("fail-over after kill -9 beside RabbitMQ", KILL, "send", "gap ms", "rabbitmq", 5.0),
    *(
        Target(f"fail-over after SIGSTOP beside {title}", FREEZE, "send", "gap ms", name, 4.0)
        for name, title in (("kafka", "Kafka"), ("nats", "NATS"), ("rabbitmq", "RabbitMQ"))
    ),
    Target("idle memory beside RabbitMQ", ("idle", "one node"), "send", "MiB", "rabbitmq", 3.0),
)  # fmt: skip


class Bound(NamedTuple):
    """What a figure of zbroker's own is to stay under."""

    what: str
    case: tuple[str, str]
    metric: str
    most: float


BOUNDS = (
    Bound("start to the first acknowledged record, s", ("startup", "one node"), "s", 0.5),
    Bound("restart after kill -9, s", ("restart", "kill -9"), "s", 1.0),
)


ALL = (("idle", "one node"), ("startup", "one node"))
"""What is quick to measure and of interest beside every peer."""


class Reached(NamedTuple):
    """How a target or a bound stands."""

    what: str
    found: float
    aimed: float
    met: bool
    bound: bool


def compares(system: System, client: Client, scenario: str, case: str) -> bool:
    """Whether something hangs on what a client does in a case."""
    if system.name == "zbroker" or (scenario, case) in ALL:
        return True
    return any(
        target.others in (FASTEST, client.name) or (target.others == PYTHON and client.python)
        for target in TARGETS
        if target.other == system.name and (target.other_case or target.case) == (scenario, case)
    )


def reached(results: Results) -> Iterator[Reached]:
    """Every target that the results say something about."""
    for target in TARGETS:
        mine = _mine(results, target)
        other = _other(results, target)
        found = ratio(mine, other) if mine and other else None
        if found is not None:
            yield Reached(
                target.what, significant(found, 3), target.least, found >= target.least, False
            )
    for bound in BOUNDS:
        for row in results.of(*bound.case, bound.metric, "zbroker"):
            met = row.median < bound.most
            yield Reached(bound.what, row.median, bound.most, met, True)


def _mine(results: Results, target: Target) -> Row | None:
    rows = results.of(*target.case, target.metric, "zbroker")
    rows = [row for row in rows if target.client in (FASTEST, row.client)]
    return best(rows) if rows else None


def _other(results: Results, target: Target) -> Row | None:
    rows = results.of(*(target.other_case or target.case), target.metric, target.other)
    if target.others == PYTHON:
        rows = [row for row in rows if row.python]
    elif target.others:
        rows = [row for row in rows if row.client == target.others]
    return best(rows) if rows else None


def lines(results: Results) -> Iterator[str]:
    """A line a target, for a terminal."""
    for one in reached(results):
        sign = "<" if one.bound else ">="
        yield f"{'met ' if one.met else 'BEHIND'}  {one.found:>8.3g} {sign} {one.aimed:<6g} {one.what}"


WHY = (
    (
        "yardstick",
        "The yardstick has no offsets, idempotence, recovery or limits, and its loop makes no delivery a record.",
    ),
    (
        "sub-entries",
        "To RabbitMQ's server a sub-entry is one opaque piece: a hundred records cost it what one does.",
    ),
    (
        "latency of three",
        (
            "Three nodes, producer and consumer share two cores, and at a thousand records a second, each sent alone, "
            "they take most of both (see Wakes): records queue. About a third of it is the kernel waking threads, the "
            "rest Python at the leader and both followers, with no single place in it; fewer threads on a record's way "
            "would change it, and a machine for each node."
        ),
    ),
    ("three replicas", "Three nodes in Python and the producer share two cores and one disk."),
    (
        "latency",
        (
            "A record sent alone wakes eight threads one after the other, from the producer's to the consumer's. Each "
            "takes its time to wake up, and some more for its Python: below is where the time goes, stage by stage."
        ),
    ),
    (
        "start to the first",
        "Nearly all of it is the interpreter importing what node and client need.",
    ),
    (
        "restart after",
        "The interpreter's imports, and the scan of what was written since the last checkpoint.",
    ),
    ("SIGSTOP", "A frozen leader is noticed when its session ends, after a second."),
    (
        "kill -9",
        "A refused connect, an appointment and two flushes at a majority; a loaded disk makes them longer.",
    ),
    (
        "consumers",
        "Producer, node and consumers share the cores; decoding into `Record` objects takes most of them.",
    ),
    (
        "replay",
        "One consumer's thread decodes MessagePack and makes `Record` objects, which bounds it.",
    ),
    ("100 B", "The application's own thread bounds `send`: one call of Python a record."),
    (
        "1 KiB",
        "Bytes are copied from process to process and into the file; what is left is `send` itself.",
    ),
    ("idle memory", "An interpreter with ZeroMQ's and the codecs' libraries."),
)
"""Why zbroker is behind where it is, by a word of the target."""


def why_behind(what: str) -> str:
    """A sentence."""
    return next((why for word, why in WHY if word in what), "")
