"""The yardstick as a load generator: `bench.pipeline`, which is a broker and its producer at once."""

from __future__ import annotations

from typing import Any

from bench import load
from bench.load import Told
from bench.pipeline import pipeline

BYTES_A_SECOND = 280 << 20
RECORDS_A_SECOND = 2_500_000


def produce(told: Told) -> dict[str, Any]:
    """About as long as the others; the pipeline counts its own acknowledgements."""
    a_second = min(RECORDS_A_SECOND, BYTES_A_SECOND // told.size)
    records = max(1000, a_second * told.seconds_ms // 1000)
    load.gate()
    rate = pipeline(told.size, records, fsync=bool(told.fsync))
    return {"start": 0, "end": int(records / rate * 1e9), "records": records, "checked": "count"}


if __name__ == "__main__":
    load.main({"produce": produce})
