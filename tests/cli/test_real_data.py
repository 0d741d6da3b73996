"""Real data through the command line: Debian's package index in, and every byte of it back.

Where this machine has no package index, data of the same shape are made from a seed.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import defaultdict

import pytest

from zbroker import Admin
from zbroker.testing.nodes import NodeProcess, wait_for
from zbroker.testing.real_data import as_input, packages

pytestmark = pytest.mark.slow

KILLS = 5


@pytest.fixture(scope="module")
def records() -> list[tuple[bytes, bytes]]:
    """Stanzas, each under its package's name."""
    return packages()


def command(node: NodeProcess, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "zbroker", *arguments, "--servers", node.servers]


def run(node: NodeProcess, *arguments: str, stdin: bytes = b"") -> bytes:
    done = subprocess.run(
        command(node, *arguments), input=stdin, capture_output=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def check_all_came_back(node: NodeProcess, records: list[tuple[bytes, bytes]]) -> None:
    """Every byte, once, and those of one key in the order in which they went in."""
    output = run(node, "consume", "packages", "--from", "earliest", "--until-end", "--null",
                 "--key-separator", r"\t")  # fmt: skip
    came: defaultdict[bytes, list[bytes]] = defaultdict(list)
    for line in output.removesuffix(b"\0").split(b"\0"):
        key, _, value = line.partition(b"\t")
        came[key].append(value)
    went: defaultdict[bytes, list[bytes]] = defaultdict(list)
    for key, value in records:
        went[key].append(value)
    assert came == went


def test_a_package_index_comes_back_byte_for_byte(
    node: NodeProcess, records: list[tuple[bytes, bytes]]
) -> None:
    run(node, "topic", "create", "packages", "--partitions", "4")
    run(node, "produce", "packages", "--null", "--key-separator", r"\t", stdin=as_input(records))
    check_all_came_back(node, records)
    values = run(node, "consume", "packages", "--from", "earliest", "--until-end", "--null")
    assert sorted(values.removesuffix(b"\0").split(b"\0")) == sorted(value for _, value in records)


def test_and_with_the_node_killed_five_times_meanwhile(
    node: NodeProcess, records: list[tuple[bytes, bytes]]
) -> None:
    run(node, "topic", "create", "packages", "--partitions", "4")
    producing = subprocess.Popen(
        command(node, "produce", "packages", "--null", "--key-separator", r"\t"),
        stdin=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert producing.stdin is not None
    data = as_input(records)
    part = len(data) // (KILLS + 1) + 1
    acknowledged = 0
    try:
        for number in range(KILLS + 1):
            feed = threading.Thread(
                target=producing.stdin.write, args=(data[number * part : (number + 1) * part],)
            )
            feed.start()
            if number < KILLS:
                acknowledged = wait_for_more(node, acknowledged)
                node.kill()
                node.start()
            feed.join(60)
            assert not feed.is_alive()
        _, errors = producing.communicate(timeout=60)
        assert producing.returncode == 0, errors.decode()
    finally:
        producing.kill()
        producing.wait()
    check_all_came_back(node, records)


def wait_for_more(node: NodeProcess, before: int) -> int:
    """Waits until more records are committed than before: so the node is killed while it takes data."""
    with Admin(node.servers) as admin:

        def committed() -> int:
            partitions = admin.describe_topic("packages").partitions
            found = sum(partition.high_watermark or 0 for partition in partitions)
            return found if found > before else 0

        return wait_for(committed, 30, "more records to be committed")
