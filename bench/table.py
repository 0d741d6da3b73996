"""One table of all results, for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from bench.results import Results, Row, best, ratio


def lines(results: Results) -> Iterator[str]:
    """A line a client and case; zbroker's own first, then how many times better it is than each."""
    yield f"{'case':44} {'client':34} {'metric':12} {'median':>12} {'spread':>25} {'zbroker is':>11}"
    keys = dict.fromkeys((row.scenario, row.case, row.metric) for row in results.rows)
    for scenario, case, metric in keys:
        for row in results.of(scenario, case, metric):
            low, high = row.spread
            yield (
                f"{f'{scenario}: {case}':44} {f'{row.system} {row.client}':34} {metric:12} "
                f"{row.median:>12,.5g} {f'{low:,.5g} to {high:,.5g}':>25} {_against(results, row):>11}"
            )
    for entry in results.skipped:
        yield f"skipped: {entry['system']}, {entry['scenario']}: {entry['case']}: {entry['why']}"
    for entry in results.failed:
        yield f"FAILED: {entry['system']}, {entry['scenario']}: {entry['case']}: {entry['why']}"


def _against(results: Results, row: Row) -> str:
    mine = results.of(row.scenario, row.case, row.metric, "zbroker")
    if row.system == "zbroker" or not mine:
        return ""
    found = ratio(best(mine), row)
    return "" if found is None else f"{found:.2f} x"
