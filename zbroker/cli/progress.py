"""A progress bar on standard error, where that is a terminal and standard input is not."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Callable, Iterator

Advance = Callable[[int, int], None]
"""Takes how many bytes and how many records were done."""


@contextlib.contextmanager
def reading_progress() -> Iterator[Advance]:
    """A bar over standard input: towards its end where that is known, else how much and how fast."""
    if not sys.stderr.isatty() or sys.stdin.isatty():
        yield lambda _bytes, _records: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TextColumn("{task.fields[records]:,} records"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=_size_of_stdin(), records=0)
        done = 0

        def advance(size: int, records: int) -> None:
            nonlocal done
            done += records
            bar.update(task, advance=size, records=done)

        yield advance


def _size_of_stdin() -> int | None:
    """Bytes left in standard input where it is a file, else None."""
    try:
        descriptor = sys.stdin.fileno()
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return None
        return max(0, status.st_size - os.lseek(descriptor, 0, os.SEEK_CUR))
    except (OSError, ValueError):
        return None
