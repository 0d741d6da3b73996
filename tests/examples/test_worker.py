"""The example worker: killed, frozen, its nodes killed, and every record counted once."""

from __future__ import annotations

import contextlib
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from zbroker import Producer, UnknownGroup
from zbroker.testing.nodes import ClusterProcesses, wait_for

WORKER = Path(__file__).parents[2] / "examples" / "worker.py"
SESSION_S = 2.0
PARTITIONS, KEYS = 6, 10


def start(cluster: ClusterProcesses, results: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            sys.executable, str(WORKER), cluster.servers, "prices", str(results),
            "--session", str(SESSION_S),
        ],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_every_record_is_counted_once_whatever_dies(tmp_path: Path) -> None:
    results = tmp_path / "totals.sqlite"
    workers: list[subprocess.Popen[str]] = []
    with ClusterProcesses(tmp_path / "nodes") as cluster:
        cluster.wait_until_healed()
        cluster.admin.create_topic("prices", partitions=PARTITIONS)

        def counted() -> int:
            if not results.exists():
                return 0
            with contextlib.closing(sqlite3.connect(results, timeout=30)) as db:
                tables = db.execute("SELECT name FROM sqlite_master WHERE name = 'totals'")
                if not tables.fetchall():
                    return 0
                return int(db.execute("SELECT total(records) FROM totals").fetchone()[0])

        def send(producer: Producer, count: int) -> int:
            for number in range(count):
                producer.send("prices", b"1.5", key=b"key-%d" % (number % KEYS))
                if number % 50 == 0:
                    time.sleep(0.02)
            return count

        def members() -> int:
            try:
                return len(cluster.admin.describe_group("totals").members)
            except UnknownGroup:
                return 0

        try:
            with Producer(cluster.servers) as producer:
                workers += [start(cluster, results) for _ in range(3)]
                sent = send(producer, 2000)
                wait_for(lambda: members() == 3, 30, "three workers")
                workers[0].kill()
                sent += send(producer, 2000)
                workers.append(start(cluster, results))
                workers[1].send_signal(signal.SIGSTOP)
                sent += send(producer, 2000)
                coordinator = cluster.admin.describe_group("totals").coordinator
                cluster.kill(coordinator)
                sent += send(producer, 2000)
                time.sleep(SESSION_S + 1)
                workers[1].send_signal(signal.SIGCONT)
                cluster.restart(coordinator)
                sent += send(producer, 2000)
            wait_for(lambda: counted() >= sent, 60, "everything to be counted")
            wait_for(lambda: members() == 3, 30, "three workers again")
            for worker in workers[1:]:
                worker.send_signal(signal.SIGTERM)
            ended = [worker.communicate(timeout=30) for worker in workers[1:]]
        finally:
            for worker in workers:
                worker.kill()
                worker.communicate()
        lags = [one.lag for one in cluster.admin.describe_group("totals").offsets]
    assert lags == [0] * PARTITIONS
    expected = "".join(f"key-{n} {sent // KEYS} {1.5 * sent / KEYS:.2f}\n" for n in range(KEYS))
    assert [err for _, err in ended] == [""] * 3
    assert ended[-1][0] == expected
