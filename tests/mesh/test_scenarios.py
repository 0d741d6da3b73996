"""What has gone wrong in clusters like this one, here and elsewhere, by script."""

from __future__ import annotations

from mesh.mesh import Mesh


def test_a_replica_that_was_away_while_another_was_appointed_follows_again() -> None:
    """It learns of the appointment while it is not up for the metadata, and then that it is up again."""
    mesh = Mesh()
    leader, away = mesh.leader, mesh.followers[0]
    away.freeze()
    mesh.cluster.run_until(lambda: away.name not in mesh.state.isr, 10, "it leaves the ISR")
    leader.stop()  # hands over before it goes
    mesh.cluster.run_until(lambda: mesh.state.leader not in (None, leader.name), 20, "a leader")
    away.thaw()
    mesh.cluster.run_until(lambda: not leader.up, 20, "it has stopped")
    leader.start()
    mesh.cluster.run_until(mesh.in_sync, 10, "all in sync again")
    assert mesh.send().outcome == "ok"
    mesh.heal()
