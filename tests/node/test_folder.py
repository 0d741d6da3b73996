"""The data folder: one node at a time, of one identity, of one format."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from zbroker.errors import DataFolderError
from zbroker.node.folder import DataFolder


def test_the_identity_is_written_once_and_kept(tmp_path: Path) -> None:
    first = DataFolder(tmp_path / "deep" / "data", "node1")
    first.close()
    second = DataFolder(tmp_path / "deep" / "data", "node1")
    second.close()
    assert first.disk_id == second.disk_id
    assert len(bytes.fromhex(first.disk_id)) == 16


def test_a_start_that_crashed_while_it_wrote_the_identity_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "node.partial").write_text('{"form')
    DataFolder(tmp_path, "node1").close()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["node.json", "reserve"]


def test_two_folders_have_two_identities(tmp_path: Path) -> None:
    folders = [DataFolder(tmp_path / name, "node1") for name in ("a", "b")]
    for folder in folders:
        folder.close()
    assert folders[0].disk_id != folders[1].disk_id


def test_a_second_node_is_refused_and_told_who_holds_the_folder(tmp_path: Path) -> None:
    held = DataFolder(tmp_path, "node1")
    with pytest.raises(DataFolderError, match=rf"in use by another node \(process {os.getpid()}\)"):
        DataFolder(tmp_path, "node1")
    held.close()
    DataFolder(tmp_path, "node1").close()


def test_the_lock_is_removed_in_order_and_does_not_outlive_its_process(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path, "node1")
    assert (tmp_path / "lock").exists()
    folder.close()
    assert not (tmp_path / "lock").exists()
    script = (
        "import os, sys, pathlib; from zbroker.node.folder import DataFolder; "
        "DataFolder(pathlib.Path(sys.argv[1]), 'node1'); os._exit(9)"
    )
    assert (
        subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False).returncode == 9
    )
    assert (tmp_path / "lock").exists()
    DataFolder(tmp_path, "node1").close()


def test_another_nodes_folder_is_refused(tmp_path: Path) -> None:
    DataFolder(tmp_path, "node1").close()
    with pytest.raises(DataFolderError, match="belongs to node 'node1', not to 'node2'"):
        DataFolder(tmp_path, "node2")


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    DataFolder(tmp_path, "node1").close()
    identity = json.loads((tmp_path / "node.json").read_text())
    (tmp_path / "node.json").write_text(json.dumps({**identity, "format": 2}))
    with pytest.raises(DataFolderError, match="has format 2, and this version knows 1"):
        DataFolder(tmp_path, "node1")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"format": 1}', "null", '{"format": 1, "node": "node1"}']
)
def test_a_damaged_identity_is_refused_not_replaced(tmp_path: Path, text: str) -> None:
    (tmp_path / "node.json").write_text(text)
    with pytest.raises(DataFolderError, match="is damaged"):
        DataFolder(tmp_path, "node1")
    assert (tmp_path / "node.json").read_text() == text


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"")
    with pytest.raises(
        DataFolderError, match=r"is not empty and has no node\.json \(it holds holiday\.jpg\)"
    ):
        DataFolder(tmp_path, "node1")


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataFolderError, match="cannot be used"):
        DataFolder(tmp_path / "file" / "data", "node1")


def test_starts_are_counted_and_a_clean_stop_is_told_once(tmp_path: Path) -> None:
    first = DataFolder(tmp_path, "node1")
    assert (first.starts, first.was_clean) == (1, False)
    first.note_clean_stop()
    first.close()
    second = DataFolder(tmp_path, "node1")
    assert (second.starts, second.was_clean) == (2, True)
    assert second.disk_id == first.disk_id
    assert second.incarnation > first.incarnation
    second.close()  # as after a crash: nothing was noted
    third = DataFolder(tmp_path, "node1")
    assert (third.starts, third.was_clean) == (3, False)
    third.close()
