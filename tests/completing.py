"""What a shell offers for a command line that is half written."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys


def complete(line: str, **environment: str) -> list[str]:
    """The completions of a line's last word, as bash asks for them."""
    words = shlex.split(line)
    done = subprocess.run(
        [sys.executable, "-m", "zbroker"],
        env={
            **os.environ,
            "_ZBROKER_COMPLETE": "bash_complete",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(words) - (not line.endswith(" "))),
            **environment,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.stderr
    return [found.partition(",")[2] for found in done.stdout.split()]
