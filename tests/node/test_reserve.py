"""Room that records never get: on a simulated full disk, and on a real one where this user may make one."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from zbroker import Admin, Consumer, Producer, ZBrokerError
from zbroker.node.files import RealFiles
from zbroker.node.reserve import NAME, STEP, Reserve
from zbroker.testing.nodes import NodeProcess, running_node, wait_for


def needs(path: Path, room: int) -> Callable[[], int]:
    """Work that finds a full disk until the reserve has given this much."""
    before = (path / NAME).stat().st_size

    def work() -> int:
        given = before - (path / NAME).stat().st_size
        if given < room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return given

    return work


@pytest.fixture
def reserve(tmp_path: Path) -> Reserve:
    made = Reserve(tmp_path, 4 * STEP)
    made.fill()
    return made


def test_it_holds_room_and_not_only_a_size(reserve: Reserve, tmp_path: Path) -> None:
    held = (tmp_path / NAME).stat()
    assert held.st_size == 4 * STEP
    assert held.st_blocks * 512 >= 4 * STEP


def test_what_needs_room_gets_a_step_at_a_time(
    reserve: Reserve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reserve, "fill", lambda: None)
    assert reserve.keep(needs(tmp_path, 1)) == STEP
    assert reserve.keep(needs(tmp_path, STEP + 1)) == 2 * STEP
    assert reserve.missing == 3 * STEP
    with pytest.raises(OSError, match="No space left"):
        reserve.keep(needs(tmp_path, 2 * STEP))
    assert reserve.missing == 4 * STEP


def test_it_grows_again_once_there_is_room(reserve: Reserve, tmp_path: Path) -> None:
    assert reserve.keep(needs(tmp_path, 2 * STEP)) == 2 * STEP
    assert reserve.missing == 0
    assert (tmp_path / NAME).stat().st_size == 4 * STEP


def test_another_error_is_no_want_of_room(reserve: Reserve, tmp_path: Path) -> None:
    def fail() -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.raises(OSError, match="Input/output"):
        reserve.keep(fail)
    assert (tmp_path / NAME).stat().st_size == 4 * STEP


@pytest.mark.parametrize(
    ("path", "gets"),
    [
        ("metadata/00000000000000000000.log", True),
        ("metadata/ballot.tmp", True),
        ("topics/a/0/checkpoint.tmp", True),
        ("topics/a/0/00000000000000000000.log", False),
        ("topics/a/0/probe.tmp", False),
        ("metadata/probe.tmp", False),
    ],
)
def test_records_never_get_it(
    path: str, gets: bool, reserve: Reserve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = RealFiles(tmp_path, reserve=reserve)
    files.make_folder(path.rpartition("/")[0])
    write = os.pwritev

    def full(fd: int, buffers: list[bytes], position: int) -> int:
        if (tmp_path / NAME).stat().st_size == 4 * STEP:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, buffers, position)

    monkeypatch.setattr("os.pwritev", full)
    if gets:
        files.write(path, 0, [b"x"])
        assert files.read(path, 0, 9) == b"x"
    else:
        with pytest.raises(OSError, match="No space left"):
            files.write(path, 0, [b"x"])
    files.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(place)], capture_output=True, check=False
    )  # fmt: skip
    if done.returncode != 0:
        pytest.skip("only root may mount")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill_up(node: NodeProcess) -> list[tuple[int, bytes]]:
    """Records until none is taken any more; those that were acknowledged, with their offsets."""
    acknowledged = []
    with Producer(node.servers, delivery_timeout=2) as producer:
        for number in range(10_000):
            value = b"%06d" % number + bytes(20_000)
            try:
                acknowledged.append((producer.send("t", value).result(30).offset, value))
            except ZBrokerError:
                return acknowledged
    raise AssertionError("the disk did not fill up")


def records(node: NodeProcess) -> list[tuple[int, bytes]]:
    with Consumer(node.servers, "t", start="earliest", until_end=True) as consumer:
        return [(record.offset, record.value) for record in consumer]


@pytest.mark.slow
def test_a_node_on_a_full_disk_restarts_and_is_emptied_in_order(small_disk: Path) -> None:
    with running_node(small_disk) as node, Admin(node.servers, timeout=20) as admin:
        admin.create_topic("t")
        kept = fill_up(node)
        assert records(node)[: len(kept)] == kept
        admin.create_topic("made-on-a-full-disk")
        node.kill()
        node.start()
        assert records(node)[: len(kept)] == kept
        admin.delete_topic("made-on-a-full-disk")
        # Room comes by deleting records: a segment goes, whatever else the disk lacks.
        end = admin.describe_topic("t").partitions[0].end_offset
        assert end is not None
        assert admin.delete_records("t", 0, end) == end
        with Producer(node.servers) as producer:
            assert producer.send("t", b"after").result(60).offset >= end
        wait_for(
            lambda: not any(each.disk_full for each in admin.cluster().nodes),
            20,
            "room on the disk",
        )
        assert node.stop() == 0
