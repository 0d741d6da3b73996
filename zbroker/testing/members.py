"""Members of a consumer group as real processes, for tests: each writes down what it was handed, and when.

Owns the members' lives: start, stop in order, kill, freeze. What their journals come to is `journals`'s. A member ends
with the process that started it. Run as a module it is such a member.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, TextIO

from zbroker.testing.journals import Journal, read_journal

POLL_S = 0.5
BATCH = 500


class MemberProcess:
    """One member. Its journal is a file of its own, which outlives it.

    Attributes:
        name: for journals and descriptions.
        died_at: when it was killed, monotonic; None while it lives or after an orderly stop.
        stopped_at: when it was asked to stop.
        frozen: the times between which it was frozen.
    """

    def __init__(
        self, name: str, servers: str, topic: str, group: str, folder: Path, **options: Any
    ) -> None:
        """
        Args:
            options: of the `Consumer`, numbers and texts.
        """
        self.name = name
        self.died_at: float | None = None
        self.stopped_at: float | None = None
        self.frozen: list[tuple[float, float]] = []
        self._journal = folder / f"{name}.journal"
        self._log = folder / f"{name}.log"
        command = [
            sys.executable, "-m", "zbroker.testing.members", servers, topic, group, str(self._journal),
        ]  # fmt: skip
        for key, value in {"client_id": name, **options}.items():
            command += ["--option", f"{key}={value}"]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log)

    def journal(self) -> Journal:
        """What it has written down so far."""
        return read_journal(self.name, self._journal)

    def said(self) -> str:
        """What it has said on standard error."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def kill(self) -> None:
        """Ends it as a crash would."""
        if self._process.poll() is None:
            self.died_at = time.monotonic()
            self._process.kill()
        self._reap()

    def stop(self, timeout: float = 20.0) -> int:
        """Asks it to stop, and returns its exit status."""
        self.stopped_at = time.monotonic()
        self._process.send_signal(signal.SIGTERM)
        return self._reap(timeout)

    def freeze(self) -> None:
        """Stops it where it is."""
        self._process.send_signal(signal.SIGSTOP)
        self.frozen.append((time.monotonic(), float("inf")))

    def thaw(self) -> None:
        """Lets it go on."""
        self.frozen[-1] = (self.frozen[-1][0], time.monotonic())
        self._process.send_signal(signal.SIGCONT)

    def _reap(self, timeout: float | None = None) -> int:
        status = self._process.wait(timeout)
        assert self._process.stdin is not None
        self._process.stdin.close()
        return status


# The member ---


class _Writer:
    """The journal of this process: one write a line, so that it is whole whenever the process ends."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def __call__(self, kind: str, *words: object) -> None:
        self._file.write(" ".join(map(str, (kind, f"{time.monotonic():.6f}", *words))) + "\n")
        self._file.flush()


def main() -> None:
    """Consumes until SIGTERM, and writes down what happens."""
    from zbroker import Consumer, MemberFenced

    parser = argparse.ArgumentParser(description="A group member that writes down what it gets.")
    for name in ("servers", "topic", "group", "journal"):
        parser.add_argument(name)
    parser.add_argument("--option", action="append", default=[])
    told = parser.parse_args()
    options = dict(one.split("=", 1) for one in told.option)
    typed: dict[str, Any] = {
        key: float(text) if text.replace(".", "", 1).isdigit() else text
        for key, text in options.items()
    }
    threading.Thread(target=_end_with_parent, daemon=True).start()
    stopping = threading.Event()
    with Path(told.journal).open("a", encoding="utf-8") as file:
        write = _Writer(file)
        consumer = Consumer(
            told.servers, told.topic, group=told.group, start="earliest",
            on_assigned=lambda places: write("assigned", *(number for _, number in places)),
            on_revoked=lambda places: write("revoked", *(number for _, number in places)),
            on_lost=lambda places: write("lost", *(number for _, number in places)),
            **typed,
        )  # fmt: skip

        def stop(*_: object) -> None:
            stopping.set()
            consumer.wakeup()

        signal.signal(signal.SIGTERM, stop)
        write("started")
        while not stopping.is_set():
            try:
                records = consumer.poll(POLL_S, BATCH)
            except MemberFenced as error:
                write("fenced", error.details.get("reason"))
                continue
            for partition, first, after in _runs(records):
                write("got", partition, first, after)
        write("closing")
        consumer.close()
        write("closed")


def _runs(records: list[Any]) -> list[tuple[int, int, int]]:
    """Records as ranges of offsets, by partition."""
    found: list[tuple[int, int, int]] = []
    for record in records:
        if found and found[-1][0] == record.partition and found[-1][2] == record.offset:
            found[-1] = (record.partition, found[-1][1], record.offset + 1)
        else:
            found.append((record.partition, record.offset, record.offset + 1))
    return found


def _end_with_parent() -> None:
    """Whoever started this process holds the other end of standard input."""
    while os.read(0, 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
