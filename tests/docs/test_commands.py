"""Every command block of the documentation runs as written, on an installation made by the README's first command.

A block marked ```console is a session: lines that begin with `$ ` are typed, the others are what they print. A block
marked ```python is run as a script. `<!-- not run: reason -->` before a block exempts it, for a reason that is read
by people.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from zbroker.testing.nodes import wait_for

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "examples" / "README.md"]
BLOCK = re.compile(r"(<!--[^>]*-->\n+)?```(console|python)\n(.*?)```", re.DOTALL)
BASE_PORT = 5550
PORTS = range(BASE_PORT, BASE_PORT + 5)

pytestmark = pytest.mark.slow


class Block(NamedTuple):
    """One block of a page."""

    page: Path
    line: int
    kind: str
    text: str
    exempt: bool


def blocks() -> list[Block]:
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8") if page.exists() else ""
        for match in BLOCK.finditer(text):
            line = text.count("\n", 0, match.start(2)) + 1
            exempt = "not run:" in (match[1] or "")
            found.append(Block(page, line, match[2], match[3], exempt))
    return found


def install_command() -> str:
    """The README's first block: it installs and runs the main job."""
    first = next(block for block in blocks() if block.kind == "console")
    return first.text.removeprefix("$ ").strip()


def ports_are_free() -> bool:
    with contextlib.ExitStack() as stack:
        for port in PORTS:
            probe = stack.enter_context(socket.socket())
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                return False
    return True


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A clean copy of the tracked files, with a node running as the README says."""
    if not ports_are_free():
        pytest.skip(
            f"ports {PORTS.start} to {PORTS.stop - 1}, which the README names, are in use here"
        )
    folder = tmp_path_factory.mktemp("clone") / "zbroker"
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True
    ).stdout
    for name in filter(None, tracked.decode().split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    log = folder.parent / "node.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            ["bash", "-c", install_command()],
            cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
            env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        )  # fmt: skip

    def serving() -> bool:
        text = log.read_text(errors="replace")
        assert process.poll() is None, f"the first command ended:\n{text}"
        return "is serving" in text

    try:
        wait_for(serving, 300, "the first command to serve")
        yield folder
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)
        assert "stopped: everything is on disk" in log.read_text(errors="replace")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def run(command: str, clone: Path) -> str:
    """What a command prints, to standard output and to standard error, as its reader sees it; it must end well."""
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=clone, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120, check=False,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PATH": f"{clone / '.venv' / 'bin'}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert done.returncode == 0, f"$ {command}\n{done.stdout}"
    return done.stdout


def sessions(text: str) -> list[tuple[str, str]]:
    """Commands of a console block, each with the output that follows it."""
    parts = re.split(r"^\$ ", text, flags=re.MULTILINE)
    assert not parts[0].strip(), "a console block begins with a command"
    return [(part.partition("\n")[0], part.partition("\n")[2]) for part in parts[1:]]


# In one test, in the order of the pages: a session may build on the one before it, as for a reader.
def test_every_block_of_the_documentation_runs_as_written(clone: Path) -> None:
    ran = 0
    for block in blocks():
        if block.exempt or block.text.removeprefix("$ ").strip() == install_command():
            continue
        place = f"{block.page.name}:{block.line}"
        if block.kind == "python":
            script = clone.parent / "block.py"
            script.write_text(block.text, encoding="utf-8")
            run(f"python {script}", clone)
        else:
            for command, expected in sessions(block.text):
                assert run(command, clone) == expected, f"{place}: $ {command}"
        ran += 1
    assert ran >= 2
