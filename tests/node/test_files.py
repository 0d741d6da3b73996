"""Real files where threads meet."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from zbroker.node.files import RealFiles


def test_a_folder_in_which_another_thread_removes_goes_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = RealFiles(tmp_path)
    for name in ("t/0/a", "t/1/a", "t/2/a"):
        files.make_folder(name.rpartition("/")[0])
        files.write(name, 0, [b"x"])
    unlink = os.unlink

    def meet_another(path: str, **where: int) -> None:
        unlink(path, **where)
        monkeypatch.setattr("os.unlink", unlink)
        raise FileNotFoundError(2, "the other thread was quicker", path)

    monkeypatch.setattr("os.unlink", meet_another)
    files.remove_folder("t")
    assert os.unlink is unlink
    assert files.list("") == []
    files.remove_folder("t")
    files.close()
