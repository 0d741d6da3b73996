"""Puts what was measured where people read it: tables and sentences in README and docs, and the chart.

    python -m bench.report            writes them
    python -m bench.report --check    says what would change, and exits with 1 when anything would

A part of a page stands between `<!-- measured: NAME -->` and `<!-- end -->`; a function below of that name writes it,
from the JSON files in `bench/results` alone. Measures nothing.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from bench import chart, targets
from bench.chart import TITLES
from bench.results import Results, better
from bench.worker import ROOT

RESULTS = ROOT / "bench" / "results"
LATENCY, COMPARISON, RARE, STAGES, COSTS, MODEL = (
    RESULTS / f"{name}.json"
    for name in ("latency", "comparison", "rare", "stages", "costs", "model")
)
COMPARED = {
    COMPARISON: "",
    LATENCY: "Latencies, for longer each: ",
    RARE: "What takes long, less often: ",
}
"""What a comparison is put together from, and what is said of each: `LATENCY` has more records than a quick run, and
`RARE` what takes too long to be measured each time."""
PAGES = (ROOT / "README.md", ROOT / "docs" / "performance.md")
PICTURES = {theme: ROOT / "docs" / f"comparison-{theme}.svg" for theme in chart.THEMES}
PART = re.compile(r"(<!-- measured: ([\w ]+) -->\n).*?(<!-- end -->)", re.DOTALL)
GROUPS = (
    ("produce", "records/s"), ("replicated", "records/s"), ("latency", "p50 ms"), ("latency", "p99 ms"),
    ("latency", "p99.9 ms"), ("wakes", "wake-ups a record"), ("wakes", "threads"), ("wakes", "µs a record"),
    ("fanout", "delivered/s"), ("replay", "records/s"),
    ("interference", "alone records/s"), ("interference", "records/s"), ("interference", "replay records/s"),
    ("interference", "live records/s"), ("asyncio_faces", "records/s"), ("topics", "create s"),
    ("topics", "records/s"), ("clients", "KiB a client"), ("clients", "records/s"), ("leader_goes", "gap ms"),
    ("startup", "s"), ("restart", "s"), ("idle", "MiB"), ("idle", "% of a core"),
    ("install", "install MiB"), ("install", "install s"),
)  # fmt: skip


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    lines = [[*header], *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def said(value: float) -> str:
    """A figure with three digits that mean something."""
    if value >= 100:
        digits = 3 - len(str(int(value)))
        return f"{round(value, digits):,.0f}"
    return f"{value:.3g}"


def conditions(head: dict[str, Any]) -> str:
    """Machine, date and command, in a sentence."""
    machine = head["machine"]
    busy = machine["load_before"]
    return (
        f"Measured {head['date']} on {machine['cores']} cores ({machine['cpu']}), {machine['memory_gib']} GiB, "
        f"{machine['system']}, Python {machine['python']}, "
        f"with a load of {busy} before it began, by `{head['command']}`; {head['runs']} "
        f"run{'s' * (head['runs'] > 1)}, medians."
    )


def comparison() -> Results:
    """The committed comparison; of a case that several files have, the first that is named here counts."""
    found = Results(Results.read(COMPARISON).head)
    for path in (LATENCY, COMPARISON, RARE):
        there = {(row.scenario, row.case) for row in found.rows}
        part = Results.read(path)
        found.rows += [row for row in part.rows if (row.scenario, row.case) not in there]
        found.skipped += [entry for entry in part.skipped if entry not in found.skipped]
        found.failed += [e for e in part.failed if (e["scenario"], e["case"]) not in there]
    return found


# Parts ---


def measured_head() -> str:
    """What was run, and what ran."""
    head = Results.read(COMPARISON).head
    rows = [[TITLES[name], version] for name, version in head["versions"].items()]
    parts = (
        f"{words}{conditions(Results.read(path).head)}\n\n" for path, words in COMPARED.items()
    )
    return "".join(parts) + table(("system", "server; clients"), rows)


def measured_chart() -> str:
    """The chart's caption."""
    return conditions(Results.read(COMPARISON).head) + "\n"


def measured_everything() -> str:
    """A table a scenario and metric: a line a case and client."""
    results = comparison()
    parts = []
    for scenario, metric in GROUPS:
        rows = [row for row in results.rows if (row.scenario, row.metric) == (scenario, metric)]
        if not rows:
            continue
        lines = []
        for row in sorted(
            rows, key=lambda r: (_place(results, r.case), -r.median * better(metric))
        ):
            low, high = row.spread
            against = results.ratio_to_zbroker(row)
            lines.append(
                [
                    row.case,
                    f"{TITLES.get(row.system, 'the yardstick')}, {row.client}",
                    said(row.median),
                    "" if len(row.values) == 1 else f"{said(low)} to {said(high)}",
                    "" if against is None else f"{against:.2f}",
                ]
            )
        title = f"#### {scenario.replace('_', ' ').capitalize()}, {metric}\n\n"
        header = ("case", "client", "median", "spread", "zbroker's best is so many times better")
        parts.append(title + table(header, lines))
    return "\n".join(parts)


def _place(results: Results, case: str) -> int:
    return [row.case for row in results.rows].index(case)


def measured_skipped() -> str:
    """What is not in the tables, and why."""
    results = comparison()
    why: dict[str, dict[str, None]] = {}
    for entry in results.skipped:
        words = " ".join(w for w in (entry["scenario"], entry["case"]) if w) or "everything"
        why.setdefault(f"{TITLES.get(entry['system'], 'the yardstick')}: {entry['why']}", {})[
            words
        ] = None
    lines = [f"- {reason} ({', '.join(cases)})." for reason, cases in why.items()]
    lines += [
        f"- FAILED: {e['system']} {e['scenario']} {e['case']}: {e['why'].splitlines()[0][:300]}"
        for e in results.failed
    ]
    return "\n".join(lines or ["Nothing."]) + "\n"


def measured_targets() -> str:
    """What was aimed at, and what was found."""
    rows = [
        [
            one.what,
            f"{'under' if one.bound else 'at least'} {one.aimed:g}",
            f"{one.found:g}",
            "yes" if one.met else "**no**",
        ]
        for one in targets.reached(comparison())
    ]
    return table(("what", "aimed at", "found", "reached"), rows)


def measured_behind() -> str:
    """Where zbroker is behind, and why."""
    lines = [
        f"- **{one.what}**: {one.found:g}, aimed at {one.aimed:g}. {targets.why_behind(one.what)}"
        for one in targets.reached(comparison())
        if not one.met
    ]
    return "\n".join(lines or ["Nowhere in this run."]) + "\n"


def measured_stages() -> str:
    """Where the time goes of a record that travels alone."""
    found = json.loads(STAGES.read_text(encoding="utf-8"))
    rows = [
        [row["stage"], f"{row['p50_us']:.0f}", f"{row['p90_us']:.0f}"]
        for row in found["rows"]
        if row["stage"] != "whole"
    ]
    whole = next(row for row in found["rows"] if row["stage"] == "whole")
    rows.append(["**all of it**", f"**{whole['p50_us']:.0f}**", f"**{whole['p90_us']:.0f}**"])
    return conditions(found["head"]) + "\n\n" + table(("stage", "p50, µs", "p90, µs"), rows)


def measured_costs() -> str:
    """What an operation costs."""
    found = json.loads(COSTS.read_text(encoding="utf-8"))
    rows = [
        [row["what"], f"{said(row['value'])} {row['unit']}", f"{row['ratio']:.3g}"]
        for row in found["rows"]
    ]
    return (
        conditions(found["head"])
        + "\n\n"
        + table(("operation", "CPU time", "in reference loops"), rows)
    )


def measured_model() -> str:
    """What several machines carry, and how far the calculation is off here."""
    found = json.loads(MODEL.read_text(encoding="utf-8"))
    checks = [
        [
            str(c["nodes"]), f"{c['size']} B", said(c["cpu_predicted_ns"]), said(c["cpu_measured_ns"]),
            f"{c['cpu_ratio']:.2f}", said(c["predicted"]), said(c["measured"]),
        ]
        for c in found["checks"]
    ]  # fmt: skip
    carries = [
        [
            str(c["nodes"]), str(c["replicas"]), f"{c['size']} B", c["network"], said(c["records_s"]),
            said(c["mb_s"]), c["bound"],
        ]
        for c in found["carries"]
    ]  # fmt: skip
    return (
        conditions(found["head"])
        + "\n\n"
        + table(
            (
                "nodes",
                "value",
                "CPU a record, predicted, ns",
                "measured, ns",
                "predicted / measured",
                "predicted, records/s",
                "measured, records/s",
            ),
            checks,
        )
        + "\n"
        + table(
            ("nodes", "replicas", "value", "network", "records/s", "MB/s", "bounded by"), carries
        )
    )


# Writing ---

WRITERS: dict[str, Callable[[], str]] = {
    name.removeprefix("measured_"): function
    for name, function in globals().items()
    if name.startswith("measured_")
}


def rendered(text: str) -> str:
    """A page with its parts written anew."""
    return PART.sub(lambda match: match[1] + WRITERS[match[2]]() + match[3], text)


def changes() -> Iterator[tuple[Path, str]]:
    """Files that are not as the JSON files say, and how they should be."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        if (wanted := rendered(text)) != text:
            yield page, wanted
    for theme, path in PICTURES.items():
        wanted = chart.svg(comparison(), theme)
        if not path.exists() or path.read_text(encoding="utf-8") != wanted:
            yield path, wanted


def main() -> int:
    """Writes, or checks."""
    found = list(changes())
    check = "--check" in sys.argv[1:]
    for path, text in found:
        print(f"{path.relative_to(ROOT)} {'would change' if check else 'is written'}")
        if not check:
            path.write_text(text, encoding="utf-8")
    return 1 if check and found else 0


if __name__ == "__main__":
    sys.exit(main())
