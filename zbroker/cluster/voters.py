"""The controller's decisions about who votes: one voter more or one less at a time, each committed before the next.

Every function is pure, as in `controller`. A voter is a node and its disk, so that an empty disk under a voter's name
is not taken for the voter that forgot its votes. Owns the order in which a voter's disk is replaced: the old one is
removed; the new one follows without a vote until it has caught up; then it is added. Whoever leads goes on with that
from the state. Never enforces that one change is committed before the next: `MetadataPartition.propose` does, and its
`caught_up` is empty until then.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

from zbroker.cluster.metadata import Metadata
from zbroker.cluster.records import MetadataRecord, VoterReplacing, VotersChanged
from zbroker.errors import InvalidRequest, NotReady
from zbroker.replication.commit import is_majority

Action = Literal["add", "remove", "replace"]


def change_voters(
    state: Metadata,
    *,
    node: str,
    action: Action,
    disks: Mapping[str, str],
    caught_up: Collection[str],
) -> list[MetadataRecord]:
    """What a person asks for; nothing where it is so already.

    Args:
        disks: of the nodes that are linked, this one too, the disk that each is on.
        caught_up: nodes that have all that is committed, with a vote or without, the leader too; none of them while
            a change is not committed.

    Raises:
        InvalidRequest: it cannot be done; the sentence says why.
        NotReady: not yet; ask again.
    """
    voters, replacing = state.voters, state.replacing
    if node not in voters and node not in state.nodes and node not in disks:
        raise InvalidRequest(
            f"there is no node {node!r}; the voters are {', '.join(sorted(voters))}"
        )
    if replacing not in (None, node):
        raise InvalidRequest(
            f"voter {replacing} is being replaced: start it on its new disk, or remove it first"
        )
    match action:
        case "add":
            records = _add(state, node, disks, caught_up)
        case "remove":
            records = _remove(state, node)
        case "replace":
            records = _replace(state, node, disks)
    for record in records:
        if isinstance(record, VotersChanged) and not is_majority(caught_up, record.voters):
            absent = sorted(record.voters.keys() - set(caught_up))
            raise NotReady(
                f"of the voters {', '.join(sorted(record.voters))} there would be no majority that is up and caught "
                f"up: {', '.join(absent)} {'is' if len(absent) == 1 else 'are'} not"
            )
    return records


def _add(
    state: Metadata, node: str, disks: Mapping[str, str], caught_up: Collection[str]
) -> list[MetadataRecord]:
    voters = state.voters
    if node in voters:
        if voters[node] == disks.get(node, voters[node]):
            return []
        raise InvalidRequest(f"{node} votes with another disk: replace the voter")
    if node not in disks or node not in caught_up:
        raise NotReady(f"{node} has not caught up with the metadata yet; ask again in a moment")
    return [VotersChanged({**voters, node: disks[node]})]


def _remove(state: Metadata, node: str) -> list[MetadataRecord]:
    if state.replacing == node:
        return [VoterReplacing(None)]
    if node not in state.voters:
        return []
    if len(state.voters) == 1:
        raise InvalidRequest(f"{node} is the only voter: add another before it goes")
    return [VotersChanged(_without(state.voters, node))]


def _replace(state: Metadata, node: str, disks: Mapping[str, str]) -> list[MetadataRecord]:
    voters = state.voters
    if state.replacing == node:
        return []
    if node not in voters:
        raise InvalidRequest(f"{node} is no voter: add it")
    if disks.get(node) == voters[node]:
        raise InvalidRequest(f"{node} is up on the disk that votes: there is nothing to replace")
    if len(voters) == 1:
        raise InvalidRequest(f"{node} is the only voter: nobody else has what it decided")
    return [VoterReplacing(node), VotersChanged(_without(voters, node))]


def continue_voters(
    state: Metadata, disks: Mapping[str, str], caught_up: Collection[str]
) -> list[MetadataRecord]:
    """The next step of a replacement, once it can be done; called now and then by whoever leads.

    Args:
        disks, caught_up: as for `change_voters`.
    """
    node = state.replacing
    if node is None or node in state.voters or node not in disks or node not in caught_up:
        return []
    voters = {**state.voters, node: disks[node]}
    return [VotersChanged(voters)] if is_majority(caught_up, voters) else []


def _without(voters: Mapping[str, str], node: str) -> dict[str, str]:
    return {name: disk for name, disk in voters.items() if name != node}
