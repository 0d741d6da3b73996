"""`zbroker topic accept-loss`: a partition whose last in-sync replica is gone for good gets a leader again.

Owns what a person is told before anything is given up. What may be given up is the controller's to say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from zbroker.cli.common import Nodes, Topic, client_options, epilog, note

if TYPE_CHECKING:
    from zbroker.client.records import ClusterDescription, PartitionDescription


@click.command(
    "accept-loss",
    epilog=epilog(
        "zbroker topic accept-loss sales --partition 0",
        "zbroker topic accept-loss sales --partition 0 --yes",
    ),
)
@click.argument("name", type=Topic())
@click.option("--partition", type=click.IntRange(0), required=True, help="Which partition.")
@click.option(
    "--node",
    metavar="NODE",
    type=Nodes(),
    help="Who is to lead; who has most of those that are up, if left out.",
)
@click.option(
    "--yes", is_flag=True, help="Do it; without this, it is only said what would be lost."
)
@client_options
def accept_loss(
    name: str, partition: int, node: str | None, yes: bool, servers: str, timeout: float
) -> None:
    """Give up what only a lost disk has of a partition. There is no way back.

    For a partition without leader that waits for a node which is gone for good: of the other replicas, the one that has
    most leads with what it has itself. Acknowledged records that it lacks are lost, and consumers that had read them
    are told.
    """
    from zbroker.cli.places import choose_partitions
    from zbroker.client.admin import Admin
    from zbroker.errors import InvalidRequest

    with Admin(servers, timeout=timeout) as admin:
        (part,) = choose_partitions(admin.describe_topic(name), partition)
        if part.leader is not None:
            raise InvalidRequest(
                f"partition {partition} of {name} has a leader, {part.leader}: nothing has to be given up"
            )
        if not yes:
            raise InvalidRequest(
                f"partition {partition} of {name}: {loss(part, admin.cluster(), node)}"
            )
        (part,) = choose_partitions(admin.accept_loss(name, partition, node), partition)
    note(
        f"partition {partition} of {name} is led by {part.leader}, with the records that it has itself"
    )


def loss(part: PartitionDescription, cluster: ClusterDescription, node: str | None) -> str:
    """What would be lost, as far as is known while nobody who knows is there, and what else there is to do."""
    up = {one.name for one in cluster.nodes if one.alive}
    last = " and ".join(part.waiting_for or part.isr)
    who = f"only {last}, which is down, has everything"
    instead = f"start {last}"
    if len(part.isr) > 1:
        who = f"its in-sync replicas stopped uncleanly, and {last} may have more of its records than others"
    elif set(part.isr) & up:
        who = f"only the disk that {last} had has everything, and {last} is up with another"
        instead = f"start {last} with its old disk"
    others = [
        each for each in part.replicas if each in up and each not in (part.waiting_for or part.isr)
    ]
    if node is not None:
        leader = node
    elif not others:
        return f"{who}; no other replica is up: start {' or '.join(part.missing) or last}"
    else:
        leader = others[0] if len(others) == 1 else f"whoever has most of {', '.join(others)}"
    return (
        f"{who}; {leader} would lead with the records that it has itself, and what was acknowledged beyond them is "
        f"lost, however much that is; say --yes to give that up for ever, or {instead}"
    )
