"""Finding logs in a data folder that no node has open, and what they are called.

Owns which folders are partitions and which topic's they are, as far as the metadata log beside them tells. Never
writes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from zbroker.errors import DataFolderError, UnsupportedVersion, ZBrokerError

if TYPE_CHECKING:
    from zbroker.cluster.metadata import Metadata
    from zbroker.log.storage import Files

METADATA = "metadata"
"""The folder of the metadata log."""
COMPANIONS = frozenset({"ballot", "cluster", "snapshot", "incoming"})
"""What stands beside the metadata log and is not the log's."""

LEVELS_UP = 4
"""How far above a segment its data folder is looked for."""


class Place(NamedTuple):
    """A partition's folder, or one segment of it.

    `root` and `folder` are its path in two parts, as the log's own functions take them.
    """

    root: Path
    folder: str
    topic: str = ""
    """The topic's name, or its id where the name is not known."""
    partition: int = 0
    segment: str | None = None

    @property
    def title(self) -> str:
        return f"{self.topic}/{self.partition}" if self.topic else self.folder

    @property
    def files(self) -> Files:
        from zbroker.node.files import RealFiles

        return RealFiles(str(self.root), descriptors=8)

    @property
    def is_metadata(self) -> bool:
        """Whether it is a node's metadata log."""
        return self.folder == METADATA and (self.root / "node.json").is_file()

    def segments(self) -> list[str]:
        """The segments' paths, under the root, in order."""
        from zbroker.log.compacted import segment_paths

        if self.segment is not None:
            return [self.segment]
        return [path for _, path in segment_paths(self.files, self.folder)]


def find(path: Path) -> list[Place]:
    """The logs at or below a path: a `.log` file, a partition's, a topic's or a whole data folder.

    Raises:
        DataFolderError: there is no log.
    """
    if not path.exists():
        raise DataFolderError(f"there is no {path}; name a .log file or a folder that holds some")
    whole = path.absolute()
    known: dict[Path, dict[str, str]] = {}
    if whole.is_file():
        if not _is_segment(whole.name):
            raise DataFolderError(
                f"{path} is no segment; expected a name of 20 digits and .log, or a folder"
            )
        place = _place(whole.parent, known)
        return [place._replace(segment=f"{place.folder}/{whole.name}")]
    found = [_place(folder, known) for folder in _partition_folders(whole)]
    if not found:
        raise DataFolderError(f"there is no log in {path}; name a .log file or a data folder")
    return found


def copies(found: Sequence[tuple[Path, Sequence[Place]]]) -> list[list[tuple[Path, Place]]]:
    """The logs that two or more paths keep a copy of, each with the paths; in the first path's order.

    Args:
        found: each path that was given, and the logs in it. Where each has one log alone, these are copies of one.
    """
    if all(len(places) == 1 for _, places in found):
        return [[(path, places[0]) for path, places in found]]
    kept: dict[str, list[tuple[Path, Place]]] = {}
    for path, places in found:
        for place in places:
            name = (place.root / place.folder).relative_to(path.absolute()).as_posix()
            kept.setdefault(name, []).append((path, place))
    return [same for same in kept.values() if len(same) > 1]


def snapshot_of(place: Place) -> Metadata:
    """The state that a metadata folder's snapshot holds; an empty one where there is none.

    Raises:
        DataDamaged, UnsupportedVersion: it cannot be read.
    """
    from zbroker.cluster import snapshot
    from zbroker.cluster.metadata import Metadata

    path = f"{place.folder}/{snapshot.NAME}"
    size = place.files.size(path)
    if size < 0:
        return Metadata()
    return snapshot.unseal(place.files.read(path, 0, size), path)[1]


def topic_names(data: Path) -> dict[str, str]:
    """Topics' names by id, from a data folder's metadata: their snapshot and their log, as much as can be read."""
    from zbroker.cluster.records import TopicCreated, decode
    from zbroker.log.inspect import Damage, scan_segment
    from zbroker.protocol.batch import decode_records

    place = Place(data, METADATA)
    files = place.files
    topics: dict[str, str] = {}
    with contextlib.suppress(ZBrokerError):
        known = snapshot_of(place)
        topics.update((topic.topic_id, topic.name) for topic in known.topics.values())
    for segment in place.segments():
        for found in scan_segment(files, segment):
            if isinstance(found, Damage) or not found.payload_intact or found.header.is_control:
                continue
            try:
                batch = files.read(segment, found.position, found.header.size)
                for row in decode_records(batch, 0, found.header):
                    record = decode(row[2]) if row is not None else None
                    if isinstance(record, TopicCreated):
                        topics[record.topic_id] = record.name
            except (UnsupportedVersion, ZBrokerError):
                continue
    return topics


def _place(folder: Path, known: dict[Path, dict[str, str]]) -> Place:
    """A partition's folder, named after its topic; `known` keeps the names of each data folder."""
    data = _data_folder(folder)
    if data is None or data == folder:
        return Place(folder.parent, folder.name)
    if data not in known:
        known[data] = topic_names(data)
    relative = folder.relative_to(data).as_posix()
    if folder.name.isdecimal() and folder.parent != data:
        topic_id = folder.parent.name
        return Place(data, relative, known[data].get(topic_id, topic_id), int(folder.name))
    return Place(data, relative)


def _partition_folders(path: Path) -> Iterator[Path]:
    for folder, inner, names in os.walk(path):
        inner.sort(key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0, name))
        if "checkpoint" in names or "epochs" in names or any(map(_is_segment, names)):
            yield Path(folder)


def _is_segment(name: str) -> bool:
    from zbroker.log import names

    return names.offset_of(name, names.LOG) is not None


def _data_folder(path: Path) -> Path | None:
    """The data folder that a path is of, told by its `node.json`."""
    for folder in [path, *path.parents][: LEVELS_UP + 1]:
        if (folder / "node.json").is_file():
            return folder
    return None
