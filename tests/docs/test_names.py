"""What documents name is there: tests, settings, metrics and events of the log."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from zbroker.broker.groups import Lag
from zbroker.node import logs, metrics

ROOT = Path(__file__).parents[2]
PAGES = sorted(ROOT.glob("docs/*.md"))
NAMED = re.compile(r"`(test_\w+)`")
PATHS = re.compile(r"`((?:tests|zbroker|bench|docs|configs|examples)/[\w./-]+)`")
DEFINED = re.compile(r"^(?:async )?def (test_\w+)", re.MULTILINE)


def defined() -> set[str]:
    return {
        name
        for file in ROOT.glob("tests/**/test_*.py")
        for name in DEFINED.findall(file.read_text(encoding="utf-8"))
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tests_that_are_named_are_there(page: Path) -> None:
    named = NAMED.findall(page.read_text(encoding="utf-8"))
    assert sorted(set(named) - defined()) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_that_are_named_are_there(page: Path) -> None:
    named = PATHS.findall(page.read_text(encoding="utf-8"))
    assert sorted({path for path in named if not (ROOT / path).exists()}) == []


def test_promises_name_their_tests() -> None:
    for name, least in (("guarantees.md", 40), ("replication.md", 10)):
        assert len(set(NAMED.findall((ROOT / "docs" / name).read_text()))) >= least


def test_each_bug_of_others_has_a_test_or_says_that_it_has_none() -> None:
    text = (ROOT / "docs/guarantees.md").read_text(encoding="utf-8")
    text = text.partition("## What others ran into")[2]
    rows = re.findall(r"^\| (\d*) ?\| (.+?) \| (.+?) \|$", text, re.MULTILINE)
    assert [int(number) for number, _, _ in rows if number] == list(range(1, 19))
    assert rows[0][1] == "what went wrong elsewhere"
    for _, bug, shown in rows[1:]:
        assert NAMED.search(shown) or shown.startswith("*No test yet*"), bug


def exposition() -> bytes:
    """What a node exposes that has one of everything."""
    sample = dict.fromkeys(metrics.PartitionSample.__struct_fields__, 1)
    of_all: dict[str, Any] = dict.fromkeys(metrics.Snapshot.__struct_fields__, 1)
    of_all |= {"node": "n", "state": "serving", "counters": {"x": 1}, "peers": {"n2": True}}
    of_all["partitions"] = (metrics.PartitionSample(**{**sample, "topic": "t"}),)
    of_all["lags"] = (Lag(group="g", topic="t", partition=0, lag=1),)
    return metrics.exposition(metrics.Snapshot(**of_all))


def test_every_metric_is_explained() -> None:
    exposed = set(re.findall(r"^(zbroker_\w+)", exposition().decode(), re.MULTILINE))
    assert {"zbroker_up", "zbroker_peer_linked", "zbroker_dropped_total"} <= exposed
    text = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    explained = set(re.findall(r"`(zbroker_\w+)", text))
    assert exposed == explained


def test_every_event_of_the_log_is_explained() -> None:
    text = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    table = text.partition("### What the log says")[2].partition("\n## ")[0]
    first = re.findall(r"^\| (`.+?) \|", table, re.MULTILINE)
    explained = {name for cell in first for name in re.findall(r"`(\w+)`", cell)}
    assert explained == set(logs.SENTENCES)
