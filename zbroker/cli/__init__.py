"""The command line: one module a noun, imported when it is called for.

`root` is where a command line arrives and where every failure ends as one sentence; `common` has the options that
commands share; `words`, `reading` and `writing` are pure: text and bytes in, values out. What a command needs beyond
click, it imports when it runs: `zbroker --help` loads no socket library.
"""

from __future__ import annotations


def main() -> None:
    """The console script."""
    from zbroker.cli.root import cli

    cli(prog_name="zbroker")
