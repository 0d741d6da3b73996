"""The import contracts of setup.cfg: kept, complete, and able to fail."""

from __future__ import annotations

import configparser
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # the same imports on every Python

ROOT = Path(__file__).parents[2]
PURE = ("broker", "cluster", "groups", "log", "protocol", "replication")


def contracts() -> dict[str, configparser.SectionProxy]:
    """The contracts by the last part of their section's name."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return {
        section.removeprefix("importlinter:contract:"): parser[section]
        for section in parser.sections()
        if section.startswith("importlinter:contract:")
    }


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """import-linter over the zbroker in a folder, under this project's contracts."""
    command = (
        "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(sys.argv[1]))"
    )
    return subprocess.run(
        [sys.executable, "-c", command, str(ROOT / "setup.cfg")],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def skeleton(tmp_path: Path) -> Path:
    """A zbroker with every package that the design names and not an import among them."""
    names = [
        name.strip("() ")
        for contract in contracts().values()
        for row in contract.get("layers", "").split()
        for name in row.replace(":", "|").split("|")
        if name.strip("() ")
    ]
    for name in dict.fromkeys(names):
        package = tmp_path.joinpath(*name.split("."))
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
    (tmp_path / "zbroker/__init__.py").touch()
    return tmp_path


def test_every_module_has_its_layer() -> None:
    rows = " ".join(
        contracts()["broker-side"]["layers"].split() + contracts()["client-side"]["layers"].split()
    )
    layered = set(rows.replace("(", " ").replace(")", " ").split())
    parts = {
        path.stem
        for path in (ROOT / "zbroker").iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert parts - {"__init__", "__main__"} <= {name.removeprefix("zbroker.") for name in layered}


def test_every_pure_package_is_kept_pure() -> None:
    listed = contracts()["pure"]["source_modules"].split()
    there = [f"zbroker.{name}" for name in PURE if (ROOT / "zbroker" / name).is_dir()]
    assert set(there) <= set(listed)


def test_a_skeleton_without_imports_keeps_the_contracts(skeleton: Path) -> None:
    done = lint(skeleton)
    assert "Contracts: 5 kept, 0 broken." in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("module", "imports", "broken"),
    [
        ("units", "zbroker.errors", "The broker's side is layered"),
        ("protocol", "zbroker.log", "The broker's side is layered"),
        ("log", "zbroker.replication", "The broker's side is layered"),
        ("groups", "zbroker.cluster", "The broker's side is layered"),
        ("broker", "zbroker.node", "The broker's side is layered"),
        ("node", "zbroker.cli", "The broker's side is layered"),
        ("cli", "zbroker.testing", "The broker's side is layered"),
        ("client", "zbroker.streams", "The client's side is layered"),
        ("client", "zbroker.cli", "The client's side is layered"),
        ("node", "zbroker.client", "The broker never imports the client"),
        ("log", "zbroker.client", "The broker never imports the client"),
        ("client", "zbroker.log", "The client never imports the broker"),
        ("streams", "zbroker.config", "The client never imports the broker"),
        ("protocol", "time", "What decides touches no clock"),
        ("topics", "zmq", "What decides touches no clock"),
        ("protocol", "os.path", "What decides touches no clock"),
    ],
)
def test_a_contract_breaks(skeleton: Path, module: str, imports: str, broken: str) -> None:
    (skeleton / "zbroker" / module / "__init__.py").write_text(f"import {imports}\n")
    done = lint(skeleton)
    assert done.returncode == 1
    assert any(
        line.startswith(broken) and line.endswith("BROKEN") for line in done.stdout.splitlines()
    ), done.stdout + done.stderr


def test_a_type_checking_import_does_not_count(skeleton: Path) -> None:
    (skeleton / "zbroker/protocol/__init__.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import datetime\n"
    )
    assert lint(skeleton).returncode == 0
