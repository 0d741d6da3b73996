"""Tables: with lines and colour for a person at a terminal, aligned columns for a pipe.

Never wraps and never cuts: a name or a path stays whole, whatever the terminal's width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from zbroker.cli.common import on_terminal
from zbroker.cli.visible import printable

if TYPE_CHECKING:
    from rich.table import Table

Row = Sequence[str]


def show(columns: Row, rows: Sequence[Row], *, numbers: Sequence[str] = ()) -> None:
    """A table on standard output; columns named in `numbers` are aligned to the right."""
    if on_terminal():
        _print(columns, rows, numbers)
        return
    clean = [[printable(cell) for cell in row] for row in rows]
    for line in aligned(columns, clean, numbers):
        click.echo(line)


def aligned(columns: Row, rows: Sequence[Row], numbers: Sequence[str] = ()) -> list[str]:
    """The table's lines, two spaces between columns, none at a line's end.

    >>> aligned(["name", "size"], [["a", "10"], ["bcdef", "7"]], ["size"])
    ['name   size', 'a        10', 'bcdef     7']
    """
    table = [columns, *rows]
    widths = [max(len(row[at]) for row in table) for at in range(len(columns))]
    right = [name in numbers for name in columns]
    return [
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in table
    ]


def facts(pairs: Sequence[tuple[str, str]]) -> None:
    """Names and what they are, a line each."""
    width = max((len(name) for name, _ in pairs), default=0)
    for name, value in pairs:
        label = click.style(name.ljust(width), dim=True)
        click.echo(f"{label}  {printable(value)}".rstrip())


def drawn(columns: Row, rows: Sequence[Row], numbers: Sequence[str] = ()) -> Table:
    """A table for rich, as a terminal gets it."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, no_wrap=True, justify="right" if name in numbers else "left")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    return table


def width(columns: Row, rows: Sequence[Row]) -> int:
    """Columns that a drawn table takes at most."""
    table = [columns, *([printable(cell) for cell in row] for row in rows)]
    return sum(max(len(row[at]) for row in table) + 3 for at in range(len(columns)))


def _print(columns: Row, rows: Sequence[Row], numbers: Sequence[str]) -> None:
    from rich.console import Console

    console = Console()
    console.width = max(console.width, width(columns, rows))
    console.print(drawn(columns, rows, numbers), soft_wrap=True)
