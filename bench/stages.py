"""Where the time of a record goes that travels alone: from when it was due until the consumer's application has it.

    python -m bench.stages [--runs 3] [--seconds 6] [--rate 1000] [--json FILE]

One node with `fsync: interval`, a producer and a consumer, each a process in which a few calls are wrapped so that they
note the monotonic clock, which all processes share. A stage is the time from one mark to the next one of the kind that
follows; to note a mark costs a microsecond or less. This looks inside zbroker, as its users do not: the marks are this
version's. Latencies as users meet them are the scenario `latency`'s.
"""

from __future__ import annotations

import argparse
import atexit
import json
import statistics
import subprocess
import sys
import tempfile
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import load
from bench.results import head
from bench.worker import die_with_parent
from zbroker import Admin, Consumer, Producer, __version__
from zbroker.testing.nodes import free_ports

STAGES = (
    ("due", "called", "the application's timer wakes it"),
    ("called", "handed", "`send` puts it in a batch, and the client's thread wakes up for it"),
    ("handed", "sent", "the client hands the request to libzmq"),
    ("sent", "received", "two threads of libzmq and TCP carry it, the node's thread wakes up"),
    ("received", "writing", "the node checks the batch and gives it its offset"),
    ("writing", "written", "it is written"),
    ("written", "published", "it is committed and published"),
    ("published", "pushed", "two threads of libzmq and TCP carry it, the consumer's thread wakes up"),
    ("pushed", "ready", "the client puts it in its place"),
    ("ready", "there", "the application's thread wakes up, and has the `Record`"),
)  # fmt: skip
SKIP_S = 2

marks: dict[str, list[int]] = defaultdict(list)


def wrap(where: Any, name: str, around: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Puts something around a function or a method."""
    setattr(where, name, around(getattr(where, name)))


def noting(
    before: str, after: str, when: Callable[..., Any]
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Notes marks before and after a call, if `when` says so of its arguments; an empty name is no mark."""

    def around(function: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any, **named: Any) -> Any:
            wanted = when(*args, **named)
            if wanted and before:
                marks[before].append(time.monotonic_ns())
            found = function(*args, **named)
            if wanted and after:
                marks[after].append(time.monotonic_ns())
            return found

        return noted

    return around


# The three processes ---


def node(told: load.Told) -> None:
    """Runs a node, which is ended by a signal."""
    from zbroker.cli import main
    from zbroker.log.requests import Write
    from zbroker.node import storage
    from zbroker.node.sockets import Sockets
    from zbroker.protocol.batch import HEADER_SIZE

    def requests(function: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any) -> Any:
            for client, frames in function(*args):
                if len(frames) > 1 and len(frames[-1]) > HEADER_SIZE:
                    marks["received"].append(time.monotonic_ns())
                yield client, frames

        return noted

    wrap(Sockets, "requests", requests)
    wrap(Sockets, "publish", noting("", "published", lambda *args: len(args) > 3 and args[3]))
    wrap(Write, "attempt", noting("writing", "written", lambda *_: True))
    wrap(storage, "execute", noting("writing", "written", lambda _, r: isinstance(r, Write)))
    atexit.register(save, told.out)
    sys.argv = ["zbroker", "run", told.config]
    main()


def producer(told: load.Told) -> None:
    """Sends at a pace."""
    from zbroker.client.connection import Connection

    wrap(
        Connection, "_transmit", noting("handed", "sent", lambda _, effect, __: effect.body is not None)
    )  # fmt: skip
    with Producer(told.servers, linger_ms=0) as client:
        client.send(told.topic, load.warm_value(told)).result(10)
        marks.clear()

        def send(value: bytes) -> None:
            marks["due"].append(int.from_bytes(value[load.HEAD : load.STAMPED], "little"))
            marks["called"].append(time.monotonic_ns())
            client.send(told.topic, value)

        load.gate()
        load.paced(told, send, time.sleep)
        client.flush()
    save(told.out)


def consumer(told: load.Told) -> None:
    """Reads what is sent."""
    from zbroker.client.driving import ConsumerMachine

    wrap(
        ConsumerMachine, "on_push", noting("pushed", "", lambda _, __, ___, body, ____: body is not None)
    )  # fmt: skip
    wrap(ConsumerMachine, "after_step", noting("", "ready", lambda machine: machine.core.ready))
    count = 0
    with Consumer(told.servers, told.topic, start="latest") as client:
        client.poll(0.5)
        load.gate()
        while count < told.rate * told.seconds:
            records, now = client.poll(20), time.monotonic_ns()
            new = [now for record in records if record.value[0] != load.WARM]
            marks["there"] += new
            count += len(new)
    save(told.out)


def save(out: str) -> None:
    """Leaves the marks for the one who asked."""
    Path(out).write_text(json.dumps(marks), encoding="utf-8")


# The measurement ---


def measure(rate: int, seconds: int) -> dict[str, list[int]]:
    """One run: nanoseconds of every stage, and of the whole way as `whole`."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        port, config = free_ports(), Path(folder, "node.yaml")
        config.write_text(
            f"node: a\ndata: {folder}/data\ncluster: {{name: bench, nodes: {{a: 127.0.0.1:{port}}}}}\n",
            encoding="utf-8",
        )

        def start(role: str, **told: Any) -> subprocess.Popen[str]:
            words = [f"{k}={v}" for k, v in {**told, "out": f"{folder}/{role}.json"}.items()]
            return subprocess.Popen(
                [sys.executable, "-m", "bench.stages", "--role", role, *words],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                preexec_fn=die_with_parent,
            )  # fmt: skip

        server = start("node", config=config)
        told = {
            "servers": f"127.0.0.1:{port}",
            "topic": "t",
            "rate": rate,
            "seconds": seconds,
            "size": 100,
        }
        with Admin(told["servers"], timeout=30) as admin:
            admin.create_topic("t", fsync="interval")
        clients = []
        for role in ("consumer", "producer"):
            clients.append(client := start(role, **told))
            assert client.stdin is not None
            assert client.stdout is not None
            assert client.stdout.readline() == "ready\n"
            client.stdin.write("go\n")
            client.stdin.flush()
        for each in (*clients, server):
            if each is server:
                server.terminate()
            if each.wait(60):
                raise SystemExit(f"{each.args} failed")
        found: dict[str, list[int]] = {}
        for role in ROLES:
            found |= json.loads(Path(folder, f"{role}.json").read_text(encoding="utf-8"))
    stages = {what: between(found[a], found[b], SKIP_S * rate) for a, b, what in STAGES}
    whole = [b - a for a, b in zip(found["due"], found["there"], strict=True)]
    return {**stages, "whole": whole[SKIP_S * rate :]}


def between(first: list[int], second: list[int], skip: int) -> list[int]:
    """From each mark to the next of the other kind."""
    places = ((mark, bisect_left(second, mark)) for mark in first[skip:])
    return [second[at] - mark for mark, at in places if at < len(second)]


ROLES = {"node": node, "producer": producer, "consumer": consumer}


def main() -> int:
    """Measures, prints a table, and keeps it."""
    if sys.argv[1:2] == ["--role"]:
        ROLES[sys.argv[2]](load.Told(sys.argv[3:]))
        return 0
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=6, help="the first two do not count")
    parser.add_argument("--rate", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    told = parser.parse_args()
    begins = head(
        ["python", "-m", "bench.stages", *sys.argv[1:]], {"zbroker": __version__}, runs=told.runs
    )
    runs = [measure(told.rate, told.seconds) for _ in range(told.runs)]
    rows = []
    for what in (*(what for _, _, what in STAGES), "whole"):
        p50, p90 = (
            round(
                statistics.median(sorted(run[what])[int(len(run[what]) * share)] for run in runs)
                / 1000,
                1,
            )
            for share in (0.5, 0.9)
        )
        rows.append({"stage": what, "p50_us": p50, "p90_us": p90})
        print(f"{p50:8.1f} {p90:8.1f} µs  {what}")
    if told.json:
        text = json.dumps({"head": begins, "rows": rows}, indent=1, ensure_ascii=False)
        told.json.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
