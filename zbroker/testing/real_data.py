"""Real data for tests: Debian's package index, which many machines have anyway, or data of its shape made from a seed.

Each record is a package's entry under the package's name: a few bytes to some kilobytes of UTF-8 with line ends in it.
"""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

LISTS = Path("/var/lib/apt/lists")
APT_HELPER = Path("/usr/lib/apt/apt-helper")
RECORDS_MIN = 20_000


def package_index() -> bytes:
    """The largest `Packages` list that `apt-get update` left here, or one made up."""
    found = sorted(LISTS.glob("*_Packages*"), key=lambda path: path.stat().st_size)
    if found and APT_HELPER.exists():
        done = subprocess.run(
            [APT_HELPER, "cat-file", found[-1]], capture_output=True, check=False, timeout=60
        )
        if done.returncode == 0 and done.stdout.count(b"\n\n") >= RECORDS_MIN:
            return done.stdout
    rng = random.Random(1)
    return b"\n\n".join(
        f"Package: package-{rng.randrange(12_000)}\nVersion: {number}\n"
        f"Description: caf\u00e9 {'x' * rng.randrange(1500)}\nSHA256: {rng.getrandbits(256):064x}".encode()
        for number in range(2 * RECORDS_MIN)
    )  # fmt: skip


def packages() -> list[tuple[bytes, bytes]]:
    """Keys and values: at least `RECORDS_MIN` of them, none with a NUL in it."""
    entries = [entry for entry in package_index().split(b"\n\n") if entry.strip()]
    assert len(entries) >= RECORDS_MIN
    assert not any(b"\0" in entry for entry in entries)
    return [(entry.split(b"\n", 1)[0].removeprefix(b"Package: "), entry) for entry in entries]


def as_input(records: list[tuple[bytes, bytes]]) -> bytes:
    """What `zbroker produce --null --key-separator '\\t'` takes for them."""
    return b"".join(key + b"\t" + value + b"\0" for key, value in records)
