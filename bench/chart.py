"""The comparison as a picture: small panels of bars, in SVG, for a light and a dark page.

Takes results and gives text; the same results give the same text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

from bench.results import Results, Row, best, better

TITLES = {
    "zbroker": "zbroker", "kafka": "Kafka", "nats": "NATS JetStream", "rabbitmq": "RabbitMQ Streams",
    "redis": "Redis Streams",
}  # fmt: skip
THEMES = {
    "light": {"text": "#1f2328", "soft": "#59636e", "mine": "#0969da", "other": "#c8ced5", "line": "#d1d9e0"},
    "dark": {"text": "#f0f6fc", "soft": "#9198a1", "mine": "#4493f8", "other": "#3d444d", "line": "#3d444d"},
}  # fmt: skip
WIDTH, COLUMNS, MARGIN = 880, 2, 16
LABEL, VALUE, ROW, HEADING = 192, 70, 22, 46


class Panel(NamedTuple):
    """One comparison.

    Attributes:
        title, case, metric: what it shows.
        unit: under its title.
        but: clients that do other work than the rest, and are left out.
    """

    title: str
    case: tuple[str, str]
    metric: str
    unit: str
    but: tuple[str, ...] = ()


RATE = "records/s"
PANELS = (
    Panel("Produce, 100 B", ("produce", "100 B, fsync never"), RATE, "records a second, one node"),
    Panel("Produce, 1 KiB", ("produce", "1 KiB, fsync never"), RATE, "records a second, one node"),
    Panel("On disk before the answer, 1 KiB", ("produce", "1 KiB, fsync always"), RATE,
          "records a second, fsync before each acknowledgement"),
    Panel("Three replicas, 100 B", ("replicated", "100 B"), RATE, "records a second, acknowledged by all",
          ("redis-benchmark -c 50 -P 64",)),
    Panel("Live, four consumers", ("fanout", "4 consumers"), "delivered/s", "records delivered a second"),
    Panel("Replay, 100 B", ("replay", "100 B, warm"), RATE, "records a second, one consumer"),
    Panel("Latency, 99th percentile", ("latency", "1,000/s, one node, fsync interval"), "p99 ms",
          "due to delivered, at 1,000 records a second"),
    Panel("The leader is killed", ("leader_goes", "kill -9"), "gap ms", "until records are acknowledged again"),
    Panel("Start", ("startup", "one node"), "s", "from nothing to the first acknowledged record"),
    Panel("Idle", ("idle", "one node"), "MiB", "memory of one node"),
)  # fmt: skip


def bars_of(results: Results, panel: Panel) -> list[Row]:
    """The best client of each system that was measured, the best first."""
    rows = [
        row for row in results.of(*panel.case, panel.metric) if row.client not in panel.but
    ]  # fmt: skip
    found = [best(mine) for name in TITLES if (mine := [row for row in rows if row.system == name])]
    return sorted(found, key=lambda row: -row.median * better(panel.metric))


def label_of(row: Row) -> str:
    """A system, and the client whose figure it is."""
    client = row.client.partition(",")[0].partition(" -")[0]
    extra = {"java, sub-entries of 100": "java, sub-entries"}.get(row.client, client)
    name = TITLES[row.system].partition(" ")[0]  # there is not much room
    return name + (f" · {extra}" if row.metric not in ("MiB", "s") else "")


def value_of(row: Row) -> str:
    """As people read it."""
    value = row.median
    if row.metric in ("s", "MiB") or row.metric.endswith("ms"):
        unit = row.metric.rpartition(" ")[2]
        if unit == "ms" and value >= 1000:
            value, unit = value / 1000, "s"
        return f"{value:.3g} {unit}" if value < 1000 else f"{value:,.0f} {unit}"
    return f"{value / 1e6:.3g} M" if value >= 1e6 else f"{value / 1e3:.3g} k"


def svg(results: Results, theme: str) -> str:
    """The whole picture."""
    colours = THEMES[theme]
    panels = [(panel, bars) for panel in PANELS if (bars := bars_of(results, panel))]
    width = (WIDTH - MARGIN * (COLUMNS + 1)) // COLUMNS
    parts: list[str] = []
    top = MARGIN
    for at in range(0, len(panels), COLUMNS):
        row = panels[at : at + COLUMNS]
        for column, (panel, bars) in enumerate(row):
            parts += _panel(panel, bars, MARGIN + column * (width + MARGIN), top, width, colours)
        top += HEADING + ROW * max(len(bars) for _, bars in row) + MARGIN
    said = "; ".join(
        f"{p.title}: {', '.join(f'{label_of(b)} {value_of(b)}' for b in bars)}"
        for p, bars in panels
    )
    return "\n".join(
        [
            (
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" width="{WIDTH}" height="{top}" '
                'role="img" font-family="system-ui, sans-serif" font-size="12">'
            ),
            "<title>zbroker and other brokers, measured side by side</title>",
            f"<desc>{escape(said)}</desc>",
            *parts,
            "</svg>",
            "",
        ]
    )


def _panel(
    panel: Panel, bars: Sequence[Row], left: int, top: int, width: int, colours: dict[str, str]
) -> Iterable[str]:
    less = better(panel.metric) < 0
    most = max(row.median for row in bars) or 1
    room = width - LABEL - VALUE
    yield _text(left, top + 14, panel.title, colours["text"], 'font-weight="600" font-size="14"')
    unit = f"{panel.unit}; {'shorter' if less else 'longer'} is better"
    yield _text(left, top + 31, unit, colours["soft"], 'font-size="11"')
    for number, row in enumerate(bars):
        y = top + HEADING + number * ROW
        mine = row.system == "zbroker"
        weight = 'font-weight="600"' if mine else ""
        length = max(1.0, row.median / most * room)
        yield _text(left, y + 12, label_of(row), colours["text" if mine else "soft"], weight)
        yield (
            f'<rect x="{left + LABEL}" y="{y + 1}" width="{length:.1f}" height="14" rx="2" '
            f'fill="{colours["mine" if mine else "other"]}"/>'
        )
        x = left + LABEL + length + 6
        yield _text(x, y + 12, value_of(row), colours["text" if mine else "soft"], weight)


def _text(x: float, y: float, text: str, colour: str, more: str) -> str:
    more = f" {more}" if more else ""
    return f'<text x="{x:.0f}" y="{y}" fill="{colour}"{more}>{escape(text)}</text>'
