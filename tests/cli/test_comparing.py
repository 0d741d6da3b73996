"""`zbroker log verify` on several copies: a stopped node's folder, and what became of copies of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from zbroker import Admin, Producer
from zbroker.cli.root import cli
from zbroker.cluster import records, snapshot
from zbroker.cluster.metadata import Metadata
from zbroker.protocol.batch import decode_records, iter_batches
from zbroker.testing.nodes import running_node


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder of a node that stopped in order, with a topic of two partitions."""
    with running_node(tmp_path_factory.mktemp("node")) as node:
        with Admin(node.servers) as admin:
            admin.create_topic("sales", partitions=2)
        with Producer(node.servers, linger_ms=0) as producer:
            for number in range(20):
                producer.send("sales", b"%d" % number, partition=number % 2).result(10)
        assert node.stop() == 0
    return node.data


@pytest.fixture
def twins(stopped: Path, tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    for name in ("a", "b"):
        shutil.copytree(stopped, tmp_path / name)
    return tmp_path / "a", tmp_path / "b"


def verify(*arguments: Path | str) -> Result:
    runner = CliRunner(env={"ZBROKER_DEBUG": ""})
    return runner.invoke(cli, ["log", "verify", *map(str, arguments)], prog_name="zbroker")


def segment(data: Path, partition: int = 0) -> Path:
    (found,) = data.glob(f"topics/*/{partition}/*.log")
    return found


def starts(path: Path) -> list[int]:
    """Where each batch of a segment begins."""
    return [at for at, _ in iter_batches(path.read_bytes())]


def test_equal_copies(twins: tuple[Path, Path]) -> None:
    a, b = twins
    result = verify(a, b)
    assert result.exit_code == 0, result.stderr
    equal = [line for line in result.stdout.splitlines() if ": equal: " in line]
    for number in (0, 1):
        line = next(line for line in equal if line.startswith(f"sales/{number}: "))
        assert line.endswith(f": offsets 0 to 9 in 10 batches: {a} and {b}")
    assert f"sales/0 in {a}: ok: " in result.stdout
    assert f"sales/0 in {b}: ok: " in result.stdout


def test_three_copies_are_compared_two_by_two(twins: tuple[Path, Path], stopped: Path) -> None:
    result = verify(*twins, stopped)
    assert result.exit_code == 0
    assert result.stdout.count("sales/1: equal: ") == 3


def test_the_first_difference_is_shown_with_both_headers(twins: tuple[Path, Path]) -> None:
    a, b = twins
    path = segment(b, 1)
    data = path.read_bytes()
    # The same number of bytes, and whole: two batches of one record in the place of each other's payloads.
    shorter = segment(a, 0).read_bytes()
    path.write_bytes(shorter)
    assert len(data) == len(shorter)
    result = verify(a, b)
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("sales/1: different"))
    assert lines[at].startswith("sales/1: different at offset 0 in ")
    assert "crc" in lines[at]
    assert lines[at + 1].startswith(f"  {a}: offset 0  epoch ")
    assert lines[at + 2].startswith(f"  {b}: offset 0  epoch ")
    assert not any(line.startswith("sales/0: different") for line in lines)
    assert "copies differ: sales/1; start the nodes together" in result.stderr
    found = json.loads(verify(a, b, "--json").stdout)
    pair = next(pair for pair in found["comparisons"] if pair["log"] == "sales/1")
    assert (pair["left"], pair["right"], pair["difference"]["offset"]) == (str(a), str(b), 0)
    assert pair["difference"]["left"]["base_offset"] == 0
    other = next(pair for pair in found["comparisons"] if pair["log"] == "sales/0")
    assert (other["first"], other["next"], other["difference"]) == (0, 10, None)


def test_a_shorter_copy_is_no_difference(twins: tuple[Path, Path]) -> None:
    a, b = twins
    path = segment(b)
    for leftover in path.parent.iterdir():
        if leftover != path and leftover.name != "epochs":
            leftover.unlink()
    path.write_bytes(path.read_bytes()[: starts(path)[5]])
    result = verify(a, b)
    assert result.exit_code == 0, result.stderr
    assert f"sales/0: equal: offsets 0 to 4 in 5 batches: {a} and {b}" in result.stdout


def test_damage_in_one_copy_is_a_difference_too(twins: tuple[Path, Path]) -> None:
    a, b = twins
    path = segment(b)
    data = bytearray(path.read_bytes())
    data[starts(path)[2] + 5] ^= 0xFF
    path.write_bytes(data)
    result = verify(a, b)
    assert result.exit_code == 1
    assert "sales/0: different at offset 2, " in result.stdout
    assert f"  {b}: no batch there" in result.stdout
    assert "found problems in 1 of " in result.stderr


def test_folders_and_files_are_compared_as_what_they_are(twins: tuple[Path, Path]) -> None:
    a, b = twins
    for path in (segment, lambda data: segment(data).parent, lambda data: segment(data).parents[1]):
        result = verify(path(a), path(b))
        assert result.exit_code == 0
        assert "sales/0: equal: offsets 0 to 9 in 10 batches" in result.stdout
    moved = b.rename(b.with_name("moved"))
    (moved / "node.json").unlink()  # no data folder any more, but a folder of logs
    result = verify(segment(a).parents[2], segment(moved).parents[2])
    assert result.exit_code == 0
    assert result.stdout.count(": equal: ") == 2


def test_different_partitions_on_purpose(stopped: Path) -> None:
    result = verify(segment(stopped, 0).parent, segment(stopped, 1).parent)
    assert result.exit_code == 1
    assert ": different at offset 0" in result.stdout


def test_names_are_found_in_a_snapshot_of_the_metadata(twins: tuple[Path, Path]) -> None:
    """A cluster that has run for long keeps a snapshot in place of its log's beginning."""
    a, _ = twins
    assert "left alone" not in verify(a).stdout
    metadata = Metadata()
    for segment in (a / "metadata").glob("*.log"):
        data = segment.read_bytes()
        for at, header in iter_batches(data):
            if not header.is_control:
                for row in decode_records(data, at, header):
                    assert row is not None
                    metadata.apply(records.decode(row[2]))
        segment.unlink()
    kept = a / "metadata" / snapshot.NAME
    kept.write_bytes(snapshot.seal(metadata, 9, 1))
    (a / "metadata" / "checkpoint").unlink()
    result = verify(a)
    assert result.exit_code == 0, result.stderr
    assert "sales/0: ok: " in result.stdout
    assert "left alone" not in result.stdout
    kept.write_bytes(kept.read_bytes()[:-1])
    result = verify(a)
    assert result.exit_code == 1
    assert "metadata/snapshot is damaged" in result.stdout


def test_a_path_that_is_not_there(stopped: Path, tmp_path: Path) -> None:
    result = verify(stopped, tmp_path / "none")
    assert result.exit_code == 1
    assert str(tmp_path / "none") in result.stderr
