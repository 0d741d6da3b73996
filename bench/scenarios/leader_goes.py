"""Fail-over: the longest gap between two acknowledgements when the leader of a partition is killed or frozen.

Three nodes, `acks=all`, a producer that sends a record of 100 B every 2 ms; each system and client at its defaults, or
as its users set it up to notice quickly (see the generators); zbroker's topic flushes each record, as by default. What
was acknowledged is read back afterwards: a record that is lost, or out of order, fails the measurement.
"""

from __future__ import annotations

import signal
import time

from bench.frame import Case, Figures, Ground, Plan
from bench.peers.base import Arena, Client
from bench.worker import BenchError

BEFORE_S, BEFORE_QUICK_S = 3.0, 1.5
"""Seconds for which records are acknowledged before the fault."""
WAYS = {"kill -9": signal.SIGKILL, "SIGSTOP": signal.SIGSTOP}


def case(way: str) -> Case:
    """One way to go."""

    def measure(ground: Ground, client: Client) -> Figures:
        running, topic = ground.servers, ground.new_name()
        if ground.system.name == "zbroker":
            running.arena = Arena(3, "always")
        running.create(topic)
        leader = running.leader(topic)
        others = [a for n, a in enumerate(running.addresses) if n != leader]
        servers = ",".join([*others, running.addresses[leader]])
        with ground.worker(client, "failover", topic=topic, servers=servers, linger=0) as worker:
            worker.ready()
            time.sleep(BEFORE_QUICK_S if ground.plan.quick else BEFORE_S)
            fault = time.monotonic_ns()
            running.signal(leader, WAYS[way])
            worker.go(fault)
            found = worker.result(150)
        if way == "SIGSTOP":
            running.signal(leader, signal.SIGCONT)
        with ground.worker(
            client, "failover_read", topic=topic, servers=",".join(others), numbers=_said(found)
        ) as reader:
            there = reader.result(90)
        if there["lost"] or there["out_of_order"] or not found["acked"]:
            raise BenchError(f"of {found['acked']} acknowledged records: {there}")
        return {"gap ms": found["gap_ms"], "doubled": there["doubled"]}

    quick = way == "kill -9"
    return Case("leader_goes", way, Arena(3, "never"), "failover", measure, quick, spoils=True)


def _said(found: dict[str, object]) -> str:
    return str(found["numbers"]).replace(" ", "")


def cases(plan: Plan) -> list[Case]:
    """Killed, and frozen."""
    return [case(way) for way in WAYS]
