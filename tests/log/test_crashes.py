"""Random crash points: thousands of short lives of a log, none of which may lose what counted as kept.

A failure names its seed; `ZBROKER_SEED=<seed> pytest tests/log/test_crashes.py` replays it alone.
"""

from __future__ import annotations

import os

import pytest
from log.histories import History

pytestmark = pytest.mark.slow  # the same decisions on every Python

CHOSEN = os.environ.get("ZBROKER_SEED")
ROUNDS = int(os.environ.get("ZBROKER_ROUNDS", "1"))
CHUNKS, SEEDS, STEPS = 20, 75, 60


@pytest.mark.parametrize("chunk", range(1 if CHOSEN else CHUNKS))
def test_no_history_loses_what_was_flushed(chunk: int) -> None:
    size = SEEDS * ROUNDS
    for seed in [int(CHOSEN)] if CHOSEN else range(chunk * size, (chunk + 1) * size):
        try:
            History(seed).run(STEPS)
        except BaseException as error:
            replay = f"ZBROKER_SEED={seed} python -m pytest -x tests/log/test_crashes.py"
            error.add_note(f"replay: {replay}")
            raise
