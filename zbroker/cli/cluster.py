"""`zbroker cluster`: which nodes there are and how they are, and what an operator does to them.

Owns the commands and how a state that is watched is shown anew. How it reads is `health`'s.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

from zbroker.cli import words
from zbroker.cli.common import (
    Nodes,
    Parsed,
    client_options,
    complain,
    epilog,
    json_option,
    note,
    on_terminal,
    say_json,
)

if TYPE_CHECKING:
    from zbroker.client.admin import Admin
    from zbroker.client.flows import VoterAction
    from zbroker.client.records import ClusterDescription


@click.group(epilog=epilog("zbroker cluster status"))
def cluster() -> None:
    """Look at a cluster, and look after its nodes."""


# Status -------------------------------------------------------------------------------------------


@cluster.command(
    epilog=epilog(
        "zbroker cluster status",
        "zbroker cluster status --watch",
        "zbroker cluster status --watch 5 --json --servers node2:5550",
    )
)
@click.option(
    "--watch",
    metavar="[SECONDS]",
    is_flag=False,
    flag_value="2",
    type=Parsed("seconds", words.parse_seconds),
    help="Show it anew every so often (2 s), until Ctrl-C.",
)
@json_option
@client_options
def status(watch: float | None, as_json: bool, servers: str, timeout: float) -> None:
    """Show the nodes, which of them is the controller, what each leads and keeps, and what is wrong.

    Partitions that lack a replica or a leader, that move, or whose last election was unclean are named. The exit
    status is 0 whatever is shown.
    """
    with _admin(servers, timeout) as admin:
        found = admin.cluster()
        if watch is not None:
            _watch(admin, found, watch, as_json)
        elif as_json:
            say_json(found)
        else:
            _show(found)


def _show(found: ClusterDescription) -> None:
    from zbroker.cli import health, tables

    if not on_terminal():
        for line in health.lines(found):
            click.echo(line)
        return
    tables.facts(health.facts(found))
    click.echo()
    tables.show(health.NODE_COLUMNS, health.node_rows(found), numbers=health.NODE_NUMBERS)
    if found.unhealthy:
        tables.show(health.PARTITION_COLUMNS, health.partition_rows(found))


def _watch(admin: Admin, found: ClusterDescription, pause: float, as_json: bool) -> None:
    """Shows the state again and again; where no server answers for a while, says so and goes on."""
    from zbroker.cli.failures import sentence
    from zbroker.errors import ZBrokerError

    latest: ClusterDescription | None = found
    with _screen() if on_terminal() and not as_json else contextlib.nullcontext(_print) as show:
        while True:
            if latest is not None and as_json:
                _say_json_line(latest)
            elif latest is not None:
                show(latest)
            time.sleep(pause)
            try:
                latest = admin.cluster()
            except ZBrokerError as error:
                latest = None
                complain(sentence(error), kind="warning")


def _say_json_line(found: ClusterDescription) -> None:
    import msgspec

    click.echo(msgspec.json.encode(found).decode())


def _print(found: ClusterDescription) -> None:
    """A state in lines of its own, for a pipe: when it was so, and what it was."""
    from zbroker.cli import health

    click.echo(words.iso(int(time.time() * 1000)))
    for line in health.lines(found):
        click.echo(f"  {line}".rstrip())
    click.echo()


@contextlib.contextmanager
def _screen() -> Iterator[Callable[[ClusterDescription], None]]:
    """What shows a state in the place of the one before it."""
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    from zbroker.cli import health, tables
    from zbroker.cli.visible import printable

    console = Console()

    def show(found: ClusterDescription) -> None:
        named = health.facts(found)
        label = max(len(name) for name, _ in named)
        parts: list[Any] = [
            Text.assemble((name.ljust(label), "dim"), "  ", printable(value), no_wrap=True)
            for name, value in named
        ]
        parts += [
            "",
            tables.drawn(health.NODE_COLUMNS, health.node_rows(found), health.NODE_NUMBERS),
        ]
        if found.unhealthy:
            parts.append(tables.drawn(health.PARTITION_COLUMNS, health.partition_rows(found)))
        live.update(Group(*parts), refresh=True)

    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        yield show


# Changing -----------------------------------------------------------------------------------------


@cluster.command(epilog=epilog("zbroker cluster drain node2", "zbroker cluster drain node2 --undo"))
@click.argument("node", type=Nodes())
@click.option("--undo", is_flag=True, help="The node may lead again.")
@client_options
def drain(node: str, undo: bool, servers: str, timeout: float) -> None:
    """Take all leaderships from a node, before its machine is stopped or looked after.

    It goes on following, so that it is in sync when it may lead again. Until --undo it stays drained, restarts
    included.
    """
    with _admin(servers, timeout) as admin:
        leading = admin.drain(node, undo=undo)
    if undo:
        note(f"{node} may lead again")
    elif leading:
        note(
            f"drained {node}, which still leads {words.count(leading, 'partition')}: "
            "no other replica is in sync"
        )
    else:
        note(f"drained {node}: it leads nothing")


@cluster.command("add-voter", epilog=epilog("zbroker cluster add-voter node4"))
@click.argument("node", type=Nodes())
@client_options
def add_voter(node: str, servers: str, timeout: float) -> None:
    """Let a node vote for the controller. An odd number of voters is what survives best: three or five."""
    _change(node, "add", servers, timeout)


@cluster.command("remove-voter", epilog=epilog("zbroker cluster remove-voter node1"))
@click.argument("node", type=Nodes())
@client_options
def remove_voter(node: str, servers: str, timeout: float) -> None:
    """Let a node vote no more. It keeps its partitions."""
    _change(node, "remove", servers, timeout)


@cluster.command("replace-voter", epilog=epilog("zbroker cluster replace-voter node2"))
@click.argument("node", type=Nodes())
@client_options
def replace_voter(node: str, servers: str, timeout: float) -> None:
    """Accept that a voter has a new disk, as after its machine was lost.

    Start the node on an empty data folder, before or after; it votes once it has caught up. Never do this to a voter
    whose old disk may come back.
    """
    _change(node, "replace", servers, timeout)


_DONE = {
    "add": "{node} votes",
    "remove": "{node} votes no more",
    "replace": "{node} votes with its new disk",
}

_LATER = "{node} votes as soon as its new disk has caught up"


def _change(node: str, action: VoterAction, servers: str, timeout: float) -> None:
    with _admin(servers, timeout) as admin:
        voters = admin.change_voters(node, action)
    done = _DONE[action] if action == "remove" or node in voters else _LATER
    note(f"{done.format(node=node)}; voters are {', '.join(voters)}")


def _admin(servers: str, timeout: float) -> Admin:
    from zbroker.client.admin import Admin

    return Admin(servers, timeout=timeout)
