"""What the examples need: Node.js with the packages of examples/node."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="session")
def javascript() -> Path:
    """The folder of the JavaScript examples, its packages in place; skips where there is no Node.js."""
    folder = EXAMPLES / "node"
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("the JavaScript examples need node and npm, which are not on the PATH")
    version = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True)
    numbers = tuple(map(int, version.stdout.strip().lstrip("v").split(".")[:2]))
    if numbers < (20, 15):
        pytest.skip(f"the JavaScript examples need Node.js 20.15; this is {version.stdout.strip()}")
    import fcntl  # where there is no fcntl, no test comes here at the same time as another

    with (folder / "package-lock.json").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stamp = folder / "node_modules" / ".package-lock.json"
        wanted = folder / "package-lock.json"
        if not stamp.exists() or stamp.stat().st_mtime < wanted.stat().st_mtime:
            done = subprocess.run(["npm", "ci"], cwd=folder, capture_output=True, text=True)
            if done.returncode:
                stop = pytest.fail if os.environ.get("CI") else pytest.skip
                stop(f"npm could not install the packages of examples/node: {done.stderr[-500:]}")
            stamp.touch()
    return folder


@pytest.fixture(scope="session")
def run_javascript(javascript: Path) -> Callable[..., str]:
    """Runs a module's text beside the examples, with standard input; answers with its output."""

    def run(script: str, given: str = "") -> str:
        done = subprocess.run(
            ["node", "--input-type=module", "--eval", script],
            cwd=javascript, input=given, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
