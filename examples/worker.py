"""A worker that counts every record exactly once, whatever dies: itself, its siblings, nodes, the group's coordinator.

    python examples/worker.py localhost:5550 prices totals.sqlite

Start as many as you like, stop them, `kill -9` them, freeze them (`kill -STOP`, later `-CONT`): they share the topic's
partitions, and each key's number of records and their sum are right at the end.

Two things make it so. The offset of what comes next is kept beside the results, and both change in one transaction; a
record before that offset has been counted already, by whomever. And a worker that is given a partition goes on at that
offset. The group's own commits, which come a little later, are for those who watch (`zbroker group describe`).
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sqlite3
import sys
from collections import defaultdict
from types import FrameType

from zbroker import Consumer, MemberFenced, Record, TopicPartition

SCHEMA = """
CREATE TABLE IF NOT EXISTS totals (key TEXT PRIMARY KEY, records INTEGER NOT NULL, total REAL NOT NULL);
CREATE TABLE IF NOT EXISTS offsets (
    topic TEXT, partition INTEGER, next INTEGER NOT NULL, PRIMARY KEY (topic, partition)
);
"""


class Results:
    """The totals so far, and up to which offset of each partition they go."""

    def __init__(self, path: str) -> None:
        self._db = sqlite3.connect(path, timeout=30, isolation_level=None)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.executescript(SCHEMA)

    def next_offset(self, topic: str, partition: int) -> int | None:
        """The first offset that is not counted yet; None where nothing is."""
        found = self._db.execute(
            "SELECT next FROM offsets WHERE topic = ? AND partition = ?", (topic, partition)
        ).fetchone()
        return None if found is None else found[0]

    def count(self, records: list[Record]) -> None:
        """Counts what is not counted yet, all or nothing."""
        by_place: dict[tuple[str, int], list[Record]] = defaultdict(list)
        for record in records:
            by_place[record.topic, record.partition].append(record)
        self._db.execute(
            "BEGIN IMMEDIATE"
        )  # one at a time: what is read here stays so until it is written
        try:
            for (topic, partition), batch in by_place.items():
                self._count_partition(topic, partition, batch)
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def _count_partition(self, topic: str, partition: int, batch: list[Record]) -> None:
        done = self.next_offset(topic, partition) or 0
        fresh = [record for record in batch if record.offset >= done]
        if not fresh:
            return
        self._db.executemany(
            "INSERT INTO totals VALUES (?, 1, ?) "
            "ON CONFLICT (key) DO UPDATE SET records = records + 1, total = total + excluded.total",
            [(_text(record.key), float(record.value or 0)) for record in fresh],
        )
        self._db.execute(
            "INSERT INTO offsets VALUES (?, ?, ?) "
            "ON CONFLICT (topic, partition) DO UPDATE SET next = excluded.next",
            (topic, partition, fresh[-1].offset + 1),
        )

    def rows(self) -> list[tuple[str, int, float]]:
        """Key, number of records and sum, by key."""
        return self._db.execute("SELECT * FROM totals ORDER BY key").fetchall()


def _text(key: bytes | None) -> str:
    return "" if key is None else key.decode(errors="replace")


def work(servers: str, topic: str, results: Results, group: str, session: float) -> None:
    """Counts until SIGTERM or Ctrl-C."""

    def on_assigned(partitions: list[TopicPartition]) -> None:
        for name, partition in partitions:
            offset = results.next_offset(name, partition)
            if offset is not None:
                consumer.seek(name, partition, offset)

    consumer = Consumer(
        servers,
        topic,
        group=group,
        start="earliest",
        session_timeout=session,
        on_assigned=on_assigned,
    )
    stopping = False

    def stop(_signal: int, _frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True
        consumer.wakeup()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    with consumer:
        while not stopping:
            # Out of the group: frozen for too long, say. Others have gone on; the next call joins it again.
            with contextlib.suppress(MemberFenced):
                records = consumer.poll(timeout=1.0)
                if records:
                    results.count(records)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("servers", help="HOST:PORT, several with commas")
    parser.add_argument("topic")
    parser.add_argument("results", help="an SQLite file that all workers share")
    parser.add_argument("--group", default="totals")
    parser.add_argument("--session", type=float, default=10.0, help="session timeout in seconds")
    parser.add_argument("--show", action="store_true", help="print the totals and end")
    told = parser.parse_args()
    results = Results(told.results)
    if not told.show:
        work(told.servers, told.topic, results, told.group, told.session)
    for key, records, total in results.rows():
        sys.stdout.write(f"{key} {records} {total:.2f}\n")


if __name__ == "__main__":
    main()
