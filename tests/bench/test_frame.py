"""The frame, with systems that are made up: they take turns, failures count, who cannot do something says why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench import costs, model, scenarios, targets
from bench.__main__ import choose
from bench.frame import Case, Ground, Plan, Session
from bench.peers import facts, known
from bench.peers.base import Arena, Client, Unsupported
from bench.results import Results, ratio
from bench.table import lines
from bench.worker import BenchError

ONE, THREE = Arena(1, "never"), Arena(3, "never")


class Servers:
    servers = "nowhere:1"

    def __init__(self, log: list[str], name: str) -> None:
        self._log, self._name = log, name

    def __enter__(self) -> Servers:
        self._log.append(f"{self._name} starts")
        return self

    def __exit__(self, *_: object) -> None:
        self._log.append(f"{self._name} ends")


class System:
    """One with a single client, whose server notes when it starts and ends."""

    warm_with = ()

    def __init__(self, name: str, log: list[str]) -> None:
        self.name = self.title = name
        self.clients = (Client("c", (), frozenset({"work"})),)
        self._log = log

    def start(self, folder: Path, arena: Arena, *, wait: bool = True) -> Any:
        if arena.nodes > 1 and self.name == "other":
            raise Unsupported("it has one node")
        return Servers(self._log, f"{self.name} {arena.nodes}")


def session(
    measures: dict[str, Any], runs: int = 2, arena: Arena = ONE
) -> tuple[Results, list[str]]:
    log: list[str] = []

    def measure(ground: Ground, client: Client) -> dict[str, float]:
        log.append(ground.system.name)
        found: dict[str, float] = measures[ground.system.name]()
        return found

    systems: Any = [System("zbroker", log), System("other", log)]
    results = Results()
    case = Case("work", "some", arena, "work", measure)
    kept: list[int] = []
    Session(
        Plan(runs=runs),
        systems,
        [case],
        results,
        lambda _line: None,
        lambda: kept.append(len(results.rows)),
    ).run()
    assert len(kept) == runs * len(systems), "after every turn"
    return results, log


def test_systems_take_turns_and_ratios_are_of_the_same_run() -> None:
    mine, others = iter([100.0, 900.0, 10.0]), iter([50.0, 300.0, 10.0])
    results, log = session(
        {
            "zbroker": lambda: {"records/s": next(mine)},
            "other": lambda: {"records/s": next(others)},
        },
        runs=3,
    )
    turn = [
        "zbroker 1 starts",
        "zbroker",
        "zbroker 1 ends",
        "other 1 starts",
        "other",
        "other 1 ends",
    ]
    assert log == turn * 3
    a, b = (results.of("work", "some", "records/s", name)[0] for name in ("zbroker", "other"))
    assert (a.median, a.spread, b.median) == (100, (10, 900), 50)
    assert ratio(a, b) == 2, "of 2, 3 and 1, not of the medians of all"


def test_less_may_be_better() -> None:
    results, _ = session({"zbroker": lambda: {"p99 ms": 2.0}, "other": lambda: {"p99 ms": 6.0}})
    (other,) = results.of("work", "some", "p99 ms", "other")
    assert results.ratio_to_zbroker(other) == 3


def test_a_measurement_that_fails_is_kept_and_the_rest_goes_on() -> None:
    def fails() -> dict[str, float]:
        raise BenchError("a record was lost")

    results, log = session({"zbroker": fails, "other": lambda: {"records/s": 1.0}}, runs=1)
    assert [entry["system"] for entry in results.failed] == ["zbroker"]
    assert log[-1] == "other 1 ends"
    assert any("FAILED" in line and "a record was lost" in line for line in lines(results))


def test_who_cannot_do_it_says_why() -> None:
    results, log = session(
        {"zbroker": lambda: {"records/s": 1.0}, "other": lambda: {"records/s": 1.0}}, arena=THREE
    )
    assert [entry["why"] for entry in results.skipped] == ["it has one node"]
    assert "other" not in log


def test_results_survive_the_file(tmp_path: Path) -> None:
    results, _ = session({"zbroker": lambda: {"s": 1.5}, "other": lambda: {"s": 3.0}})
    results.head = {"date": "today"}
    results.skip("other", "x", "y", "a reason")
    results.write(tmp_path / "found.json")
    again = Results.read(tmp_path / "found.json")
    assert (again.rows, again.head, again.skipped) == (results.rows, results.head, results.skipped)


def test_a_peer_that_is_not_installed_is_skipped_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facts, "HOME", tmp_path)
    results = Results()
    systems = choose("all", results)
    assert [system.name for system in systems] == ["zbroker", "limit"]
    assert {e["system"] for e in results.skipped} == {"kafka", "nats", "rabbitmq", "redis"}
    assert all("bench/peers/install" in entry["why"] for entry in results.skipped)
    with pytest.raises(SystemExit):
        choose("pulsar", results)


def test_every_scenario_has_cases_of_its_own_name_and_says_what_it_means() -> None:
    clients = [client for system in known().values() for client in system.clients]
    for name in scenarios.names():
        found = scenarios.cases(name, Plan())
        assert found, name
        assert {case.scenario for case in found} == {name}
        assert len({case.name for case in found}) == len(found)
        for case in found:
            assert any(case.action in client.does for client in clients), case.action
    assert scenarios.cases("produce", Plan(quick=True))


def test_every_target_names_a_case_of_the_quick_run_and_says_why_it_may_be_missed() -> None:
    quick = {
        (case.scenario, case.name)
        for name in scenarios.names()
        for case in scenarios.cases(name, Plan(quick=True))
    }
    whole = {
        (case.scenario, case.name)
        for name in scenarios.names()
        for case in scenarios.cases(name, Plan())
    }
    mine = {client.name for client in known()["zbroker"].clients}
    for target in targets.TARGETS:
        assert target.case in (whole if "SIGSTOP" in target.what else quick), target
        assert target.other_case is None or target.other_case in quick
        assert target.client in mine | {targets.FASTEST}
        assert target.others in ("python", *(c.name for c in known()[target.other].clients), "")
        assert targets.why_behind(target.what), target.what
    for bound in targets.BOUNDS:
        assert bound.case in quick
        assert targets.why_behind(bound.what)


def test_targets_are_met_or_missed() -> None:
    results = Results()
    client, java = Client("send", (), frozenset()), Client("java", (), frozenset())
    results.add(*targets.SMALL, "zbroker", client, "records/s", 500)
    results.add(*targets.SMALL, "kafka", java, "records/s", 100)
    results.add("startup", "one node", "zbroker", client, "s", 0.7)
    found = {one.what: (one.found, one.met) for one in targets.reached(results)}
    assert found == {
        "100 B, send, beside Kafka's Java client": (5.0, True),
        "start to the first acknowledged record, s": (0.7, False),
    }


def test_the_model_grows_with_its_nodes_and_names_what_bounds_it() -> None:
    fit = model.line({100: 110e-6, 1100: 210e-6, 2100: 310e-6})
    assert fit.of(0) == pytest.approx(100e-6)
    assert fit.byte == pytest.approx(1e-7)
    cheap = model.Line(1e-6, 1e-12)
    costs_of = model.Costs(cheap, cheap, cheap, 0.0, {100: (1e-7, 1e-7)})
    three, six = (model.carried(costs_of, nodes, 100, "1 Gbit/s") for nodes in (3, 6))
    assert (three.bound, three.replicas) == ("network out", 3)
    assert six.records_s == pytest.approx(2 * three.records_s, rel=0.01)
    dear = model.Line(0.0, 1e-6)
    slow = model.Costs(dear, dear, dear, 0.0, {100: (1e-7, 1e-7)})
    assert model.carried(slow, 1, 100, "10 Gbit/s").bound == "CPU"


def test_a_cost_that_has_grown_is_named(tmp_path: Path) -> None:
    kept = tmp_path / "costs.json"
    kept.write_text('{"rows": [{"name": "a", "ratio": 2.0}, {"name": "b", "ratio": 2.0}]}')
    now = [
        costs.Cost("a", "an a", 1, "ns", 2.5),
        costs.Cost("b", "a b", 1, "ns", 3.0),
        costs.Cost("c", "", 1, "ns", 9),
    ]
    assert list(costs.grown(now, kept)) == ["a b: 3 rounds of the reference loop, was 2"]
    again = [costs.Cost("b", "a b", 1, "ns", 2.1), costs.Cost("a", "an a", 1, "ns", 9)]
    assert list(costs.grown(costs.least(now, again), kept)) == [], "it was the machine"
