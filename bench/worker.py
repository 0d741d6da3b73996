"""The other side of `bench.load`: starts load generators, lets them go together, and takes what they say.

Owns the processes' lives: none outlives the one that started it, whatever becomes of that.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from bench.load import HEAD

ROOT = Path(__file__).parents[1]
READY_S, RESULT_S = 90.0, 240.0
PR_SET_PDEATHSIG = 1

_WORDS = [
    "store",
    "sensor",
    "temperature",
    "pressure",
    "humidity",
    "voltage",
    "status",
    "ok",
    "warning",
    "line",
    "batch",
    "order",
    "customer",
    "reading",
    "valve",
    "motor",
    "speed",
    "torque",
    "position",
    "angle",
    "north",
    "south",
    "shelf",
]


class BenchError(Exception):
    """A measurement that failed, or whose records were not all there once and in order."""


def die_with_parent() -> None:
    """In a child before its program starts: the system ends it with its parent (Linux)."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def ring_file(folder: Path, size: int, length: int) -> Path:
    """The values of a run: readable text, about as compressible as what machines report, numbered at its front."""
    path = folder / f"ring-{size}-{length}"
    if not path.exists():
        chance = random.Random(size)
        text = " ".join(
            f"{chance.choice(_WORDS)}={chance.random() * 1000:.3f}" for _ in range(100_000)
        ).encode()
        values = []
        for number in range(length):
            at = chance.randrange(max(1, len(text) - size))
            pad = text[at : at + size - HEAD]
            values.append(number.to_bytes(HEAD, "big") + pad.ljust(size - HEAD, b"."))
        path.write_bytes(b"".join(values))
    return path


class Worker:
    """One load generator. A context manager: it is gone at the end."""

    def __init__(
        self, command: Sequence[str], action: str, env: Mapping[str, str] | None = None, **told: Any
    ) -> None:
        words = [f"{name}={value}" for name, value in told.items()]
        self.name = f"{command[-1]} {action}"
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        self._said = b""
        self.process = subprocess.Popen(
            [*command, action, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
            preexec_fn=die_with_parent,
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:  # fmt: skip
        self.close()

    def close(self) -> None:
        """Ends it at once, if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self._stderr):
            if stream is not None:
                stream.close()

    def line(self, timeout: float) -> str:
        """The next line that it says."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + timeout
        while b"\n" not in self._said:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.process.stdout], [], [], left)[0]:
                raise BenchError(f"{self.name} said nothing for {timeout:.0f} s{self._why()}")
            found = os.read(self.process.stdout.fileno(), 1 << 16)
            if not found:
                raise BenchError(f"{self.name} ended{self._why()}")
            self._said += found
        line, _, self._said = self._said.partition(b"\n")
        return line.decode()

    def _why(self) -> str:
        self._stderr.seek(0)
        said = self._stderr.read().decode(errors="replace").strip().splitlines()
        return f": {' | '.join(said[-4:])[-600:]}" if said else ""

    def ready(self, timeout: float = READY_S) -> Worker:
        """Waits until it is set up; what libraries print before that is passed over."""
        while self.line(timeout) != "ready":
            pass
        return self

    def go(self, word: object = "go") -> Worker:
        """Lets it start; or tells it what it waits for."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word}\n".encode())
        self.process.stdin.flush()
        return self

    def result(self, timeout: float = RESULT_S) -> dict[str, Any]:
        """What it measured."""
        line = self.line(timeout)
        while not line.startswith("{"):
            line = self.line(timeout)
        found: dict[str, Any] = json.loads(line)
        self.process.wait(30)
        return found


def together(workers: Iterable[Worker]) -> list[dict[str, Any]]:
    """Lets all of them start at once, and waits for all."""
    told = list(workers)
    for worker in told:
        worker.ready()
    for worker in told:
        worker.go()
    return [worker.result() for worker in told]
