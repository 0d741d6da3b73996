"""Whole clusters from seeds: clients at work while everything goes wrong, then healing, then judgement.

A failing seed says how to run it again. More seeds, for as long as you like: `python -m zbroker.testing --help`.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from zbroker.testing.faults import PROFILES, Faults
from zbroker.testing.simulation import Simulation, simulate

pytestmark = pytest.mark.slow  # the same decisions on every Python

CHUNK = 2
"""Seeds that one test runs: enough to be worth a worker's while, few enough to share them out evenly."""
FEW = {
    "calm": 2,
    "process": 4,
    "network": 4,
    "disk": 4,
    "mixed": 6,
    "churn": 4,
    "damage": 4,
    "dark": 4,
}
MANY = {
    "process": 8,
    "network": 8,
    "disk": 8,
    "mixed": 12,
    "churn": 8,
    "damage": 8,
    "dark": 8,
    "moves": 8,
    "storm": 10,
}


def chunks(counts: dict[str, int], first: int) -> list[tuple[str, int]]:
    return [
        (profile, first + begin)
        for profile, count in counts.items()
        for begin in range(0, count, CHUNK)
    ]


def run(profile: str, first: int) -> None:
    for seed in range(first, first + CHUNK):
        result = simulate(seed, profile)
        again = f"python -m zbroker.testing --profile {profile} --replay {seed}"
        assert not result.problems, "\n".join([*result.problems, result.place, again])


@pytest.mark.parametrize(("profile", "first"), chunks(FEW, 0))
def test_a_cluster_keeps_its_promises(profile: str, first: int) -> None:
    run(profile, first)


@pytest.mark.parametrize(("profile", "first"), chunks(MANY, 1000))
def test_a_cluster_keeps_its_promises_whatever_happens(profile: str, first: int) -> None:
    run(profile, first)


def test_every_check_is_made_and_every_outcome_is_met() -> None:
    """A check that never runs finds nothing."""
    checks: dict[str, int] = {}
    outcomes: dict[str, int] = {}
    for seed in range(5):
        result = simulate(seed, "mixed", nodes=3)
        for name, count in result.checks.items():
            checks[name] = checks.get(name, 0) + count
        for name, count in result.outcomes.items():
            outcomes[name] = outcomes.get(name, 0) + count
    expected = {
        "9 members", "10 records", "12 joined", "13 cuts", "14 served", "16 ballots", "16 complete", "16 leaders",
        "16 majorities", "17 handed", "17 owners", "17 positions", "18 acknowledged",
    }  # fmt: skip
    assert set(checks) == expected
    assert all(checks.values())
    assert set(outcomes) == {"ok", "fail", "unknown"}


def test_every_fault_of_the_atlas_has_its_method() -> None:
    for name, profile in PROFILES.items():
        for fault in profile.weights:
            assert callable(getattr(Faults, fault, None)), (name, fault)


DIGESTS = """
from zbroker.testing.simulation import simulate
for seed, profile in ((1, "mixed"), (2, "storm"), (3, "churn")):
    print(simulate(seed, profile).digest)
"""


def test_a_seed_is_the_same_run_under_any_hash_seed() -> None:
    found = set()
    for hash_seed in ("0", "4242"):
        done = subprocess.run(
            [sys.executable, "-c", DIGESTS],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True, text=True, check=True, timeout=100,
        )  # fmt: skip
        found.add(done.stdout)
    assert len(found) == 1, found
    assert len(set(found.pop().split())) == 3


def test_what_is_wrong_is_told_with_the_way_to_see_it_again() -> None:
    """A run that fails keeps what led to it."""
    simulation = Simulation(1, "calm", nodes=3, seconds=1.0)
    simulation.invariants.ledger("metadata").leaders[0] = ("nobody", 0)
    result = simulation.run()
    assert "two leaders of epoch 0 of metadata" in result.problems[0]
    assert result.place
    assert result.transcript
