"""README and docs say what the JSON files say, and no figure that is not in one."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench import chart, report

FIGURE = re.compile(
    r"\d[\d.,]*\s*(?:k|M|thousand|million)?\s*(?:records/s|records a second|MiB/s|MB/s|ns a record|µs a batch|ms at)"
)


def test_pages_and_pictures_are_as_the_files_say() -> None:
    assert [str(path.name) for path, _ in report.changes()] == [], (
        "python -m bench.report writes them"
    )


@pytest.mark.parametrize(
    "page", [*report.PAGES, report.ROOT / "bench" / "README.md"], ids=lambda page: page.name
)
def test_no_figure_is_typed_by_hand(page: Path) -> None:
    by_hand = report.PART.sub("", page.read_text(encoding="utf-8"))
    assert FIGURE.findall(by_hand) == []


def test_a_page_that_says_something_else_is_noticed() -> None:
    text = "<!-- measured: targets -->\n| 100,000,000 records/s |\n<!-- end -->"
    assert report.rendered(text) != text
    assert FIGURE.findall("it takes 1.2 M records/s")


@pytest.mark.parametrize("theme", chart.THEMES)
def test_the_picture_has_a_bar_for_each_figure(theme: str) -> None:
    results = report.comparison()
    picture = ElementTree.fromstring(chart.svg(results, theme))
    space = "{http://www.w3.org/2000/svg}"
    bars = [bar for panel in chart.PANELS for bar in chart.bars_of(results, panel)]
    assert len(picture.findall(f"{space}rect")) == len(bars) > 0
    texts = [element.text for element in picture.findall(f"{space}text")]
    assert all(chart.value_of(bar) in texts for bar in bars)


def test_every_committed_result_says_what_it_was_measured_on() -> None:
    for path in sorted(report.RESULTS.glob("*.json")):
        head = json.loads(path.read_text(encoding="utf-8"))["head"]
        assert {"command", "date", "machine", "versions", "runs"} <= set(head), path
        assert {"cores", "cpu", "python", "load_before"} <= set(head["machine"]), path
