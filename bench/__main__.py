"""Measures zbroker and its peers side by side, doing the same work.

    python -m bench [SCENARIO…] [--peers kafka,nats,rabbitmq,redis|none|all] [--runs 3] [--quick] [--json FILE]

Every scenario, if none is named. Each run measures every system once, in turn; the table gives medians, spread, and how
many times better zbroker's best client is than each, run by run. Whoever loses, doubles or reorders a record fails.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from bench import frame, peers, results, scenarios, table, targets
from bench.peers.base import System
from zbroker.units import parse_size


def main(argv: Sequence[str] | None = None) -> int:
    """Measures what it is told to; 1 where anything failed."""
    told = arguments(argv)
    # Nodes that compile themselves at each start are not what users have.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    plan = frame.Plan(
        quick=told.quick,
        aimed=told.quick and told.clients != "all",
        runs=told.runs or (1 if told.quick else 3),
        seconds=told.seconds or (0.6 if told.quick else 2.0),
        size=told.size or (128 << 20 if told.quick else 10 << 30),
    )
    found = results.Results()
    systems = choose(told.peers, found)
    versions = {system.name: system.version() for system in systems if system.name != "limit"}
    command = ["python -m bench", *(argv if argv is not None else sys.argv[1:])]
    found.head = results.head(command, versions, quick=plan.quick, runs=plan.runs)
    todo = [
        case
        for scenario in told.scenarios or scenarios.names()
        for case in scenarios.cases(scenario, plan)
        if told.case in case.name
    ]
    session = frame.Session(
        plan, systems, todo, found, lambda line: print(line, flush=True),
        keep=lambda: found.write(told.json) if told.json else None,
    )  # fmt: skip
    try:
        session.run()
    except KeyboardInterrupt:
        found.fail("", "", "", "interrupted")
    print()
    print("\n".join((*table.lines(found), "", *targets.lines(found))))
    if told.json:
        found.write(told.json)
    return 1 if found.failed else 0


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )  # fmt: skip
    parser.add_argument(
        "scenarios", nargs="*", metavar="SCENARIO", help=", ".join(scenarios.names())
    )
    parser.add_argument("--peers", default="all", help="kafka,nats,rabbitmq,redis, all or none")
    parser.add_argument("--runs", type=int, help="3; 1 with --quick")
    parser.add_argument("--quick", action="store_true", help="few cases, each short: five minutes")
    parser.add_argument(
        "--clients", choices=["all"], help="of peers; in a quick run only those that a target names"
    )
    parser.add_argument("--json", type=Path, help="where every value goes")
    parser.add_argument("--case", default="", help="only cases whose name has this in it")
    parser.add_argument(
        "--seconds", type=float, help="how long a producer sends: 2; 0.6 with --quick"
    )
    parser.add_argument(
        "--size", type=parse_size, help="of the log that is restarted: 10GiB; 128MiB"
    )
    told = parser.parse_args(argv)
    unknown = set(told.scenarios) - set(scenarios.names())
    if unknown:
        parser.error(
            f"there is no {', '.join(sorted(unknown))}; there are {', '.join(scenarios.names())}"
        )
    return told


def choose(words: str, found: results.Results) -> list[System]:
    """zbroker, the yardstick, and the peers that were named and are installed."""
    known = peers.known()
    others = [name for name in known if name not in ("zbroker", "limit")]
    wanted = {"all": others, "none": []}.get(words, words.split(","))
    unknown = [name for name in wanted if name not in others]
    if unknown:
        raise SystemExit(f"there is no peer {', '.join(unknown)}; there are {', '.join(others)}")
    systems = [known["zbroker"], known["limit"]]
    for name in wanted:
        why = known[name].why_not()
        if why is None:
            systems.append(known[name])
        else:
            print(f"skipped: {why}", flush=True)
            found.skip(name, "", "", why)
    return systems


if __name__ == "__main__":
    sys.exit(main())
