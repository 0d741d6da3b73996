"""`zbroker topic move`: partitions to other nodes, and waiting until they are there.

Owns when a move is over, as far as a topic's description tells: its replicas are those asked for, and all in sync.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import click

from zbroker.cli import words
from zbroker.cli.common import Nodes, Topic, client_options, epilog, note

if TYPE_CHECKING:
    from zbroker.client.records import PartitionDescription, TopicDescription

PAUSE_S = 0.5
"""Between two looks at a move."""


def under_way(
    found: TopicDescription, partition: int | None, to: Sequence[str]
) -> list[PartitionDescription]:
    """The partitions that have not arrived: those whose replicas are not the ones asked for, or not in sync.

    Args:
        partition: the one that is moved, or None for all.
        to: the nodes asked for: exactly these for one partition, any of these for all; none is any node.
    """
    return [
        part
        for part in found.partitions
        if partition in (None, part.partition) and not _arrived(found, part, partition, to)
    ]


def _arrived(
    found: TopicDescription, part: PartitionDescription, partition: int | None, to: Sequence[str]
) -> bool:
    if part.missing:
        return False
    if partition is not None and to:
        return set(part.replicas) == set(to)
    copies = int(found.settings.get("replicas", len(part.replicas)))
    return len(part.replicas) <= copies and (not to or set(part.replicas) <= set(to))


@click.command(
    epilog=epilog(
        "zbroker topic move sales",
        "zbroker topic move sales --partition 0 --to node2,node3,node4 --wait",
    )
)
@click.argument("name", type=Topic())
@click.option("--partition", type=click.IntRange(0), help="One partition; all, if left out.")
@click.option(
    "--to",
    metavar="NODE[,…]",
    type=Nodes(many=True),
    default=(),
    help="The nodes that are to keep it, the preferred leader first; all nodes, if left out.",
)
@click.option("--wait", is_flag=True, help="Wait until the new replicas are in sync.")
@client_options
def move(
    name: str, partition: int | None, to: tuple[str, ...], wait: bool, servers: str, timeout: float
) -> None:
    """Give a topic's partitions other nodes, while it is written and read.

    They are copied first, and the old replicas go once the new ones are in sync. Without --partition, all of them are
    spread anew over the nodes: what to do after a node was added.
    """
    from zbroker.client.admin import Admin

    with Admin(servers, timeout=timeout) as admin:
        found = admin.move_partitions(name, partition, to)
        left = under_way(found, partition, to)
        if not left:
            note(f"topic {name}: nothing to move")
        elif wait:
            _wait(lambda: under_way(admin.describe_topic(name), partition, to), name, left)
        else:
            note(
                f"topic {name}: {words.count(len(left), 'partition')} on the way; "
                f"see how far with `zbroker topic describe {name}`"
            )


def _wait(
    look: Callable[[], list[PartitionDescription]], name: str, left: list[PartitionDescription]
) -> None:
    """Looks until nothing is under way, and says of each partition when it has arrived."""
    from zbroker.cli.root import Interrupted

    try:
        with _progress(len(left)) as show:
            while left:
                show(left)
                time.sleep(PAUSE_S)
                now = look()
                numbers = {part.partition for part in now}
                for part in left:
                    if part.partition not in numbers:
                        note(f"partition {part.partition} of {name} has moved")
                left = now
    except KeyboardInterrupt:
        raise Interrupted(
            f"{words.count(len(left), 'partition')} of {name} still on the way, which goes on; "
            f"see how far with `zbroker topic describe {name}`"
        ) from None


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[list[PartitionDescription]], None]]:
    """What shows how many have arrived and what the first of the others wait for: a bar, or a line at each change."""
    if not sys.stderr.isatty():
        said: list[str] = []

        def say(left: list[PartitionDescription]) -> None:
            lines = [f"partition {part.partition}: {waits_for(part)}" for part in left]
            for line in lines:
                if line not in said:
                    note(line)
            said[:] = lines

        yield say
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)

        def show(left: list[PartitionDescription]) -> None:
            first = f"partition {left[0].partition}: {waits_for(left[0])}"
            bar.update(task, completed=total - len(left), description=first)

        yield show


def waits_for(part: PartitionDescription) -> str:
    """What a partition under way still needs."""
    if part.leader is None:
        return "has no leader"
    if part.missing:
        return f"copies to {', '.join(part.missing)}"
    return f"kept by {', '.join(part.replicas)}, of which some are to go"
