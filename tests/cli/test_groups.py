"""`zbroker group` and `zbroker consume --group` on a real node, and how fast a group is said to be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from zbroker import Consumer, GroupDescription, GroupOffset, Producer
from zbroker.cli.catching_up import Pace, paces
from zbroker.testing.nodes import NodeProcess, running_node, wait_for


def run(node: NodeProcess, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "zbroker", *arguments],
        capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL,
        env={**os.environ, "ZBROKER_SERVERS": node.servers},
    )  # fmt: skip


def well(node: NodeProcess, *arguments: str) -> str:
    done = run(node, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def wrong(node: NodeProcess, *arguments: str) -> str:
    done = run(node, *arguments)
    assert (done.returncode, done.stdout) == (1, ""), done
    (line,) = done.stderr.splitlines()
    return line


def described(*offsets: tuple[int, int, int]) -> GroupDescription:
    """A group by hand: offset, lag and commit time of each partition."""
    return GroupDescription("g", "n1", "stable", 1, "sticky", 0, (), tuple(
        GroupOffset("t", number, offset, offset + lag, lag, time=at)
        for number, (offset, lag, at) in enumerate(offsets)
    ))  # fmt: skip


def test_a_pace_is_what_was_committed_between_two_commits() -> None:
    before = described((100, 1000, 0), (0, 50, 0), (7, 0, 0), (5, 9, 0))
    after = described((300, 800, 2000), (10, 90, 2000), (7, 0, 0), (5, 9, 0))
    assert paces(before, after) == {
        ("t", 0): Pace(100.0, 8.0),  # 200 records in two seconds; the lag shrinks by 100 a second
        ("t", 1): Pace(5.0, None),  # it grows
        ("t", 2): Pace(0.0, 0.0),
        ("t", 3): Pace(0.0, None),
    }
    assert paces(before, before) == {}


@pytest.mark.slow
def test_a_group_from_its_first_record_to_its_deletion(tmp_path: Path) -> None:
    with running_node(tmp_path / "node") as node:
        well(node, "topic", "create", "sales", "--partitions", "2")
        assert well(node, "group", "list") == ""
        assert "there is no group 'invoices'" in wrong(node, "group", "describe", "invoices")
        with Producer(node.servers) as producer:
            for partition in (0, 1):
                values = [b"%d" % number for number in range(partition, 100, 2)]
                producer.send_many("sales", values, partition=partition)
        group = ("consume", "sales", "--group", "invoices", "--from", "earliest")
        first = well(node, *group, "--max", "30").split()
        rest = well(node, *group, "--until-end").split()
        assert sorted(map(int, first + rest)) == list(range(100))  # none twice
        assert well(node, "group", "list") == "invoices\n"
        found = json.loads(well(node, "group", "describe", "invoices", "--json"))
        assert (found["state"], found["coordinator"]) == ("empty", "node1")
        assert sum(one["offset"] for one in found["offsets"]) == 100
        text = well(node, "group", "describe", "invoices")
        assert "0 records behind" in text

        planned = run(node, "group", "reset", "invoices", "--shift", "-5")
        assert "nothing was changed yet; say --yes" in planned.stderr
        assert well(node, "group", "describe", "invoices") == text
        well(node, "group", "reset", "invoices", "--to", "earliest", "--yes")
        changes = json.loads(well(
            node, "group", "reset", "invoices", "--shift", "3", "--topic", "sales", "--partition", "1",
            "--json", "--execute",
        ))  # fmt: skip
        assert changes == [{"topic": "sales", "partition": 1, "before": 0, "after": 3}]
        assert len(well(node, *group, "--until-end").split()) == 97

        with Consumer(node.servers, "sales", group="invoices", client_id="desk-7") as consumer:
            wait_for(lambda: not consumer.poll(0.1) and consumer.assignment())
            assert "desk-7" in well(node, "group", "describe", "invoices")
            for change in (("reset", "invoices", "--to", "0"), ("delete", "invoices")):
                assert "members" in wrong(node, "group", *change)
        well(node, "group", "delete", "invoices", "--topic", "sales")
        well(node, "group", "delete", "invoices")
        assert well(node, "group", "list") == ""
