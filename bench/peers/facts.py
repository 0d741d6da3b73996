"""What is known of an installed peer: whether it is there, its packages' versions, what it takes of the disk."""

from __future__ import annotations

import json
import subprocess

from bench.peers.installer import HOME, INSTALLERS, python_of


def missing(name: str) -> str | None:
    """A sentence, where the installer has not finished it."""
    if (HOME / f"{name}.json").exists():
        return None
    assert name in INSTALLERS
    return f"{name} is not installed here (bench/peers/install {name})"


def package(name: str, client: str) -> str:
    """The version of a peer's client in Python."""
    found = subprocess.run(
        [python_of(name), "-c", f"from importlib.metadata import version; print(version({client!r}))"],
        capture_output=True, text=True, check=False,
    ).stdout.strip()  # fmt: skip
    return f"{client} {found}"


def debian_version(name: str) -> str:
    """The version of a Debian package."""
    return subprocess.run(
        ["dpkg-query", "-Wf", "${Version}", name], capture_output=True, text=True, check=False
    ).stdout.strip()


def footprint(name: str) -> dict[str, float]:
    """What installing it took."""
    facts = json.loads((HOME / f"{name}.json").read_text(encoding="utf-8"))
    return {"install_mib": round(facts["bytes"] / (1 << 20), 1), "install_s": facts["seconds"]}
