"""A cluster's first formation, in every order in which disks and messages can come."""

from __future__ import annotations

import pytest

from zbroker.testing.cluster import SimulatedCluster
from zbroker.testing.invariants import Invariants


@pytest.mark.parametrize("first", range(0, 120, 40))
def test_every_voter_knows_the_voters(first: int) -> None:
    """Also the voter that heard of the new cluster from another voter, before the founder told it."""
    for seed in range(first, first + 40):
        cluster = SimulatedCluster(seed, 3, watch=Invariants())
        cluster.form(20)
        for machine in cluster.machines.values():
            election = machine.broker.quorum.election
            assert election is not None
            assert election.voters == cluster.names, (seed, machine.name, election.voters)


def test_the_identity_of_a_disk_outlives_a_power_failure() -> None:
    """Votes are kept in the folder in which the identity is: the folder itself has to be on the disk first."""
    for seed in range(20):
        cluster = SimulatedCluster(seed, 3, watch=Invariants())
        cluster.form(20)
        for machine in cluster.machines.values():
            machine.lose_power()
        cluster.form(20)
        identities = {
            machine.broker.formation.identity.cluster  # type: ignore[union-attr]
            for machine in cluster.machines.values()
        }
        assert len(identities) == 1, (seed, identities)


def test_nodes_that_do_not_vote_follow_the_metadata_and_serve() -> None:
    cluster = SimulatedCluster(2, 5, watch=Invariants())
    cluster.form(20)
    assert [
        name for name, machine in cluster.machines.items() if machine.broker.metadata.is_up(name)
    ] == cluster.names


@pytest.mark.parametrize("slowness", [1.0, 1000.0])
@pytest.mark.parametrize("which", ["n1", "n2"])
def test_an_empty_disk_founds_no_second_cluster(which: str, slowness: float) -> None:
    """Also where the others are heard before it is known that the disk is empty."""
    for seed in range(10):
        cluster = SimulatedCluster(seed, 3, watch=Invariants())
        cluster.form(20)
        machine = cluster.machines[which]
        machine.kill()
        machine.empty_disk()
        machine.slowness = slowness
        machine.start()
        formation = machine.broker.formation
        cluster.run_until(
            lambda formation=formation: formation.identity, 60, "it belongs somewhere"
        )
        others = {each.broker.metadata.cluster_id for each in cluster.up if each is not machine}
        assert formation.identity is not None
        assert {formation.identity.cluster} == others, seed
        assert not formation.identity.voters
