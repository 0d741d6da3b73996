"""Every command block of the documentation runs as written, on an installation made by the README's first command.

A block marked ```console is a session: lines that begin with `$ ` are typed, the others are what they print. A block
marked ```python is run as a script. `<!-- not run: reason -->` before a block exempts it, for a reason that is read
by people.

What else this machine is doing must not matter: the node's data lies in memory where there is room, ports that another
run uses are waited for, and no command has less than minutes. A failure says what was printed in its first line, which
is the one that pytest's summary repeats.
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
import tempfile
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
PORTS_PATIENCE_S = 120.0
INSTALL_PATIENCE_S = 600.0
COMMAND_PATIENCE_S = 300.0
MEMORY = Path("/dev/shm")
MEMORY_MIN = 32 << 20
PRINTED_MAX = 250
"""Characters of output in a failure's first line, of which the last are kept."""

# pytest's own limit counts the installation too.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


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


def one_line(text: str) -> str:
    """The end of what was printed, its lines side by side."""
    line = " | ".join(text.strip().splitlines()) or "nothing"
    return line if len(line) <= PRINTED_MAX else f"…{line[-PRINTED_MAX:]}"


def copy_tracked(folder: Path) -> None:
    """The tracked files, as a clone would have them."""
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True
    ).stdout
    for name in filter(None, tracked.decode().split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


@contextlib.contextmanager
def data_in_memory(clone: Path) -> Iterator[None]:
    """Has the node's data folder in memory, where there is some.

    Commands wait ten seconds for an answer, and on a disk that other tests keep busy one fsync may take longer.
    """
    try:
        roomy = shutil.disk_usage(MEMORY).free >= MEMORY_MIN and os.access(MEMORY, os.W_OK)
    except OSError:
        roomy = False
    if not roomy:
        yield
        return
    with tempfile.TemporaryDirectory(dir=MEMORY) as memory:
        (clone / "data").symlink_to(memory)
        yield


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A clean copy of the tracked files, with a node running as the README says."""
    try:
        wait_for(ports_are_free, PORTS_PATIENCE_S)
    except TimeoutError:
        pytest.skip(
            f"ports {PORTS.start} to {PORTS.stop - 1}, which the README names, are in use here"
        )
    folder = tmp_path_factory.mktemp("clone") / "zbroker"
    copy_tracked(folder)
    with data_in_memory(folder), serving_node(folder, folder.parent / "node.log"):
        yield folder


@contextlib.contextmanager
def serving_node(folder: Path, log: Path) -> Iterator[None]:
    """The README's first command, as long as the pages are run."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            ["bash", "-c", install_command()],
            cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
            env=reader_environment(Path(sys.executable).parent),
        )  # fmt: skip

    def logged(text: str) -> bool:
        printed = log.read_text(errors="replace")
        if text in printed:
            return True
        assert process.poll() is None, f"the first command ended: {one_line(printed)}"
        return False

    def stopped() -> bool:
        return "stopped: everything is on disk" in log.read_text(errors="replace")

    try:
        wait_for(lambda: logged("is serving"), INSTALL_PATIENCE_S, "the first command to serve")
        yield
        os.killpg(process.pid, signal.SIGTERM)
        # The shell may go before its node has: what counts is what the node says.
        wait_for(stopped, 60, "the node to stop in order")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def reader_environment(first: Path) -> dict[str, str]:
    """A reader's environment: no settings of zbroker or Python, and the folder given first on the path."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("ZBROKER_", "PYTHON", "VIRTUAL_ENV", "COV_"))
    }
    patient = {"PIP_RETRIES": "10", "PIP_DEFAULT_TIMEOUT": "60"}  # for the package index
    return {**patient, **kept, "PATH": f"{first}:{os.environ['PATH']}", "LC_ALL": "C.UTF-8"}


def run(place: str, command: str, clone: Path) -> str:
    """What a command prints, to standard output and to standard error, as its reader sees it; it must end well."""
    try:
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", command],
            cwd=clone, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
            stdin=subprocess.DEVNULL, timeout=COMMAND_PATIENCE_S, env=reader_environment(clone / ".venv" / "bin"),
        )  # fmt: skip
    except subprocess.TimeoutExpired as late:
        printed = (late.stdout or b"").decode(errors="replace")
        pytest.fail(f"{place}: $ {command}: did not end, printed: {one_line(printed)}")
    if done.returncode != 0:
        pytest.fail(
            f"{place}: $ {command}: ended with {done.returncode}, printed: {one_line(done.stdout)}"
        )
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
            run(place, f"python {script}", clone)
        else:
            for command, expected in sessions(block.text):
                printed = run(place, command, clone)
                if printed != expected:
                    pytest.fail(
                        f"{place}: $ {command}: expected: {one_line(expected)}, printed: {one_line(printed)}"
                    )
        ran += 1
    assert ran >= 2
