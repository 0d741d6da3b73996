"""What was measured, with what it was measured on: kept as JSON, which everything that is said of it comes from.

A row is one client's figure in one case, with the value of every run; ratios are zbroker's against it, run by run.
Draws and prints nothing.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.peers.base import Client

LESS_IS_BETTER = {
    "p50 ms", "p90 ms", "p99 ms", "p99.9 ms", "worst ms", "gap ms", "ms", "s", "MiB", "% of a core",
    "install MiB", "install s", "KiB a client", "wake-ups a record", "threads", "µs a record",
}  # fmt: skip


@dataclass
class Row:
    """One client's figure in one case."""

    scenario: str
    case: str
    system: str
    client: str
    python: bool
    metric: str
    values: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Of all runs."""
        return statistics.median(self.values)

    @property
    def spread(self) -> tuple[float, float]:
        """The least and the most."""
        return min(self.values), max(self.values)


@dataclass
class Results:
    """All rows of one command, and what was skipped or went wrong."""

    head: dict[str, Any] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)

    def add(
        self, scenario: str, case: str, system: str, client: Client, metric: str, value: float
    ) -> None:
        """One more run's value."""
        row = self.find(scenario, case, system, client.name, metric)
        if row is None:
            row = Row(scenario, case, system, client.name, client.python, metric)
            self.rows.append(row)
        row.values.append(significant(value))

    def find(self, scenario: str, case: str, system: str, client: str, metric: str) -> Row | None:
        """The row, where there is one."""
        key = (scenario, case, system, client, metric)
        for row in self.rows:
            if (row.scenario, row.case, row.system, row.client, row.metric) == key:
                return row
        return None

    def of(self, scenario: str, case: str, metric: str, system: str | None = None) -> list[Row]:
        """Every client's row of a case."""
        return [
            row
            for row in self.rows
            if (row.scenario, row.case, row.metric) == (scenario, case, metric)
            and (system is None or row.system == system)
        ]

    def skip(self, system: str, scenario: str, case: str, why: str) -> None:
        """Somebody does not take part in something, for a reason."""
        entry = {"system": system, "scenario": scenario, "case": case, "why": why}
        if entry not in self.skipped:
            self.skipped.append(entry)

    def fail(self, system: str, scenario: str, case: str, why: str) -> None:
        """A measurement came to nothing, or a record was not there once and in order."""
        self.failed.append({"system": system, "scenario": scenario, "case": case, "why": why})

    def write(self, path: Path) -> None:
        """As JSON, a row a line."""
        rows = [
            {
                "scenario": row.scenario, "case": row.case, "system": row.system, "client": row.client,
                "python": row.python, "metric": row.metric, "median": row.median,
                "spread": list(row.spread), "ratio": self.ratio_to_zbroker(row), "values": row.values,
            }
            for row in self.rows
        ]  # fmt: skip
        parts = {"head": self.head, "rows": rows, "skipped": self.skipped, "failed": self.failed}
        text = ",\n".join(
            f' "{name}": {json.dumps(part, indent=1, ensure_ascii=False)}'
            if isinstance(part, dict)
            else f' "{name}": [\n  '
            + ",\n  ".join(json.dumps(e, ensure_ascii=False) for e in part)
            + "\n ]"
            for name, part in parts.items()
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{\n" + text + "\n}\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Results:
        """What `write` wrote."""
        found = json.loads(path.read_text(encoding="utf-8"))
        names = ("scenario", "case", "system", "client", "python", "metric", "values")
        rows = [Row(**{name: row[name] for name in names}) for row in found["rows"]]
        return cls(found["head"], rows, found["skipped"], found["failed"])

    def ratio_to_zbroker(self, row: Row) -> float | None:
        """How many times better zbroker's best client is, the median over runs; None where there is none."""
        mine = list(self.of(row.scenario, row.case, row.metric, "zbroker"))
        if not mine or row.system == "zbroker":
            return None
        found = ratio(best(mine), row)
        return None if found is None else round(found, 3)


def better(metric: str) -> int:
    """1 where more is better, -1 where less is."""
    return -1 if metric in LESS_IS_BETTER else 1


def best(rows: Sequence[Row]) -> Row:
    """The best of several clients."""
    return max(rows, key=lambda row: row.median * better(row.metric))


def ratio(mine: Row, other: Row) -> float | None:
    """How many times better the first is than the second, run by run; the median. None where it cannot be said."""
    pairs = [
        (m, o) if better(mine.metric) > 0 else (o, m)
        for m, o in zip(mine.values, other.values, strict=False)
    ]
    if not pairs or any(below <= 0 for _, below in pairs):
        return None
    return statistics.median(above / below for above, below in pairs)


def significant(value: float, digits: int = 4) -> float:
    """A figure without the digits that mean nothing."""
    return float(f"{value:.{digits}g}")


def head(command: Sequence[str], versions: Mapping[str, str], **more: Any) -> dict[str, Any]:
    """Machine, versions and date."""
    return {
        "command": " ".join(command),
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "machine": machine(),
        "versions": dict(versions),
        **more,
    }


def machine() -> dict[str, Any]:
    """What this machine is, and how busy it was."""
    model = "unknown"
    cpus, memory = Path("/proc/cpuinfo"), Path("/proc/meminfo")
    if cpus.exists():
        lines = cpus.read_text(encoding="utf-8", errors="replace").splitlines()
        model = next(
            (x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), model
        )
    total = 0
    if memory.exists():
        total = int(memory.read_text(encoding="ascii").split()[1]) // (1 << 20)
    return {
        "cores": os.cpu_count(),
        "cpu": model,
        "memory_gib": total,
        "system": f"{platform.system()} {platform.release()}",
        "python": sys.version.split()[0],
        "load_before": round(os.getloadavg()[0], 1),
    }
