"""Whether processes are there."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from pathlib import Path


def is_there(pid: int) -> bool:
    """Whether a process runs; one that has ended and nobody has waited for yet does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        if Path("/proc/self").exists():
            return False
        return (
            subprocess.run(["ps", "-p", str(pid)], capture_output=True, check=False).returncode == 0
        )
    return state != "Z"


def gone(pids: Iterable[int]) -> bool:
    """Whether none of them runs."""
    return not any(map(is_there, pids))
