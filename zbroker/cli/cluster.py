"""`zbroker cluster`: which nodes there are and how they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from zbroker.cli import words
from zbroker.cli.common import client_options, epilog, json_option, say_json

if TYPE_CHECKING:
    from zbroker.client.records import NodeDescription


@click.group(epilog=epilog("zbroker cluster status"))
def cluster() -> None:
    """Look at a cluster."""


@cluster.command(
    epilog=epilog("zbroker cluster status", "zbroker cluster status --servers node2:5550")
)
@json_option
@client_options
def status(as_json: bool, servers: str, timeout: float) -> None:
    """Show the nodes, which of them is the controller, what each leads and keeps, and what is wrong."""
    from zbroker.client.admin import Admin

    with Admin(servers, timeout=timeout) as admin:
        found = admin.cluster()
    if as_json:
        say_json(found)
        return
    from zbroker.cli import tables

    short = [node.under_replicated for node in found.nodes if node.under_replicated is not None]
    tables.facts(
        [
            ("cluster", f"{found.name} ({found.id})"),
            ("controller", found.controller or "none"),
            ("nodes", f"{sum(node.alive for node in found.nodes)} of {len(found.nodes)} up"),
            ("under-replicated", words.count(sum(short), "partition") if short else "?"),
        ]
    )
    click.echo()
    tables.show(
        ["node", "address", "state", "up", "clients", "leads", "keeps", "size", "software"],
        [_row(node) for node in found.nodes],
        numbers=("clients", "leads", "keeps", "size"),
    )


def _row(node: NodeDescription) -> list[str]:
    """A node as a row; what only it knows is `?` where it did not answer."""
    from zbroker.units import Address

    def number(value: int | None) -> str:
        return "?" if value is None else f"{value:,}"

    state = "up" if node.alive else "down"
    if node.disk_full:
        state += ", disk full"
    return [
        node.name,
        str(Address(node.host, node.port)),
        state,
        "?" if node.uptime is None else words.approximate_time(node.uptime),
        number(node.clients),
        number(node.leading),
        number(node.partitions),
        "?" if node.size is None else words.approximate_size(node.size),
        node.software or "?",
    ]
