"""Where the time goes: a node and its clients under a scenario, as flame graphs by py-spy.

    python -m bench.profile SCENARIO [--case WORDS] [--client NAME] [--of node|client] [--out FOLDER] [--rate 400]

Runs one case of `python -m bench` on zbroker and records every node or every load generator meanwhile: a picture a
process, `node-1.svg`, `client-1.svg`, …, to be opened in a browser. Needs `pip install py-spy`, and root where the
system asks it.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from bench import frame, results, scenarios
from bench.peers import known
from bench.peers.base import System

LOOK_S = 0.05


def spy() -> str:
    """py-spy's program.

    Raises:
        SystemExit: it is not installed.
    """
    found = shutil.which("py-spy", path=str(Path(sys.executable).parent)) or shutil.which("py-spy")
    if found is None:
        raise SystemExit("py-spy is not installed: pip install py-spy")
    return found


class Recorder(threading.Thread):
    """Finds the processes that are wanted as they appear, and records each until it ends."""

    def __init__(self, program: str, of: str, out: Path, rate: int) -> None:
        super().__init__(daemon=True)
        self._words = b"zbroker\0run" if of == "node" else b"bench.peers.load.zb"
        self._command = [program, "record", "-r", str(rate), "--nonblocking"]
        self._of, self._out = of, out
        self._seen: dict[int, subprocess.Popen[bytes]] = {}
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(LOOK_S):
            for pid in self._wanted():
                name = self._out / f"{self._of}-{len(self._seen) + 1}.svg"
                command = [*self._command, "-o", str(name), "-p", str(pid)]
                self._seen[pid] = subprocess.Popen(
                    command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
                )

    def _wanted(self) -> Iterator[int]:
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) not in self._seen:
                with contextlib.suppress(OSError):
                    words = (entry / "cmdline").read_bytes()
                    if self._words in words and b"py-spy" not in words:
                        yield int(entry.name)

    def end(self) -> list[Path]:
        """Waits for every recording; the pictures that there are."""
        self._over.set()
        self.join()
        for process in self._seen.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        return sorted(self._out.glob(f"{self._of}-*.svg"))


def only(client: str) -> System:
    """zbroker with one of its clients, and the one that reads everything back."""
    system = known()["zbroker"]
    system.clients = tuple(c for c in system.clients if c.name == client)
    if not system.clients:
        raise SystemExit(f"there is no client {client!r}")
    return system


def main() -> int:
    """Runs the case and says where the pictures are."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scenario", choices=scenarios.names())
    parser.add_argument("--case", default="", help="the first case whose name has this in it")
    parser.add_argument("--client", default="send", help="zbroker's client, as tables name it")
    parser.add_argument("--of", choices=("node", "client"), default="client")
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "zbroker-profile")
    parser.add_argument("--rate", type=int, default=400)
    parser.add_argument("--seconds", type=float, default=5.0, help="how long a producer sends")
    told = parser.parse_args()
    program = spy()
    told.out.mkdir(parents=True, exist_ok=True)
    plan = frame.Plan(runs=1, seconds=told.seconds, size=1 << 30)
    case = next(case for case in scenarios.cases(told.scenario, plan) if told.case in case.name)
    recorder = Recorder(program, told.of, told.out, told.rate)
    found = results.Results()
    session = frame.Session(plan, [only(told.client)], [case], found)
    recorder.start()
    session.run()
    pictures = recorder.end()
    for picture in pictures:
        print(picture)
    return 0 if pictures and not found.failed else 1


if __name__ == "__main__":
    sys.exit(main())
