"""The log: what one node keeps of one partition, from an appended batch to the bytes that a reader gets.

Owns a partition's folder: segments, sparse indexes, the epoch table, producer snapshots, the recovery checkpoint.
Decisions are made by `Log`, a protocol machine over the `Storage` port; everything that touches a file is a
`Request` that a storage runs elsewhere. Never reads a clock, never opens a file itself, starts no thread.

The tour, from the outside in: `log` (the machine), `storage` (the port), `requests` (the file work of each
operation), `recovery` (opening after whatever happened), `reading`, `compactor` (when and beside what a log is
compacted) with `compaction` (how) and `compacted` (what is on disk of it), and under them `segment`, `index`, `epochs`,
`producers`, `checkpoint`, `envelope` and `names`. `inspect` looks at a folder offline.
"""

from zbroker.log.events import (
    AppendFailed,
    Broken,
    Closed,
    CompactionDone,
    EpochBegun,
    Event,
    Found,
    Opened,
    ReadDone,
    StartMoved,
    Truncated,
)
from zbroker.log.log import Log
from zbroker.log.producers import Duplicate, ProducerTable
from zbroker.log.requests import delete_folder
from zbroker.log.settings import LogSettings
from zbroker.log.storage import Completion, Files, Lane, Request, Storage, execute

__all__ = [
    "AppendFailed",
    "Broken",
    "Closed",
    "CompactionDone",
    "Completion",
    "Duplicate",
    "EpochBegun",
    "Event",
    "Files",
    "Found",
    "Lane",
    "Log",
    "LogSettings",
    "Opened",
    "ProducerTable",
    "ReadDone",
    "Request",
    "StartMoved",
    "Storage",
    "Truncated",
    "delete_folder",
    "execute",
]
