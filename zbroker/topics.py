"""A topic's name and settings: the vocabulary that YAML, the command line, Python and the wire share.

Owns which settings there are, what values each may take, their defaults, and which may still change on a topic
that exists. The same words stand under `topics:` in YAML, after `--set`, in `create_topic(**settings)` and in the
requests that those become; a node keeps the resolved `TopicSettings`. Never decides where replicas go.

To add a setting: a field of `TopicSettings`, and its row in `SETTINGS`.

A setting's life: `parse` turns words into values (sizes are bytes, durations milliseconds, None is "without
limit"); `create` adds the defaults and checks the whole against the cluster; `alter` changes an existing topic's;
`TopicSettings.words` writes them back.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import msgspec

from zbroker.errors import InvalidSetting, InvalidTopic
from zbroker.units import (
    UnitError,
    format_duration,
    format_size,
    parse_duration,
    parse_size,
)

Value = int | str | None
"""A setting's value as it is kept: a number, bytes, milliseconds, a choice, or None for no limit."""

Fsync = Literal["always", "interval", "never"]
Timestamp = Literal["create", "append"]
Cleanup = Literal["delete", "compact", "compact,delete"]

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
SECOND, HOUR, DAY = 1000, 3_600_000, 86_400_000

PARTITIONS_MAX = 4096
"""The most partitions that one topic may have."""

GROUPS = "__groups"
"""The internal topic in which consumer groups are kept."""

NAME_MAX = 249
_NAME = re.compile(rf"[A-Za-z0-9._-]{{1,{NAME_MAX}}}", re.ASCII)
_WHOLE = re.compile(r"[0-9]{1,18}", re.ASCII)


class TopicSettings(msgspec.Struct, frozen=True):
    """What a topic was created with, defaults included. Sizes in bytes, durations in milliseconds."""

    partitions: int = 1
    replicas: int = 1
    min_insync: int = 1
    fsync: Fsync = "always"
    fsync_interval: int = SECOND
    retention: int | None = 7 * DAY
    retention_size: int | None = None
    segment_size: int = 128 * MIB
    segment_age: int = DAY
    max_batch: int = 4 * MIB
    timestamp: Timestamp = "create"
    cleanup: Cleanup = "delete"
    tombstone_grace: int = DAY
    min_dirty: int = 50

    @property
    def compacts(self) -> bool:
        """Whether only the newest record of each key is kept, so that every record has to have one."""
        return self.cleanup != "delete"

    @property
    def deletes(self) -> bool:
        """Whether records go by age and size."""
        return self.cleanup != "compact"

    def words(self) -> dict[str, int | str]:
        """The settings as people write them; `create(parse(words), nodes=…)` makes the same again.

        >>> TopicSettings().words()["retention"], TopicSettings().words()["segment_size"]
        ('7d', '128MiB')
        """
        return {name: SETTINGS[name].write(getattr(self, name)) for name in SETTINGS}


class Setting(msgspec.Struct, frozen=True):
    """One setting: how it is read and written, and what it is for."""

    read: Callable[[int | str], Value]
    write: Callable[[Value], int | str]
    doc: str
    change: Literal["any", "grow", "never"] = "any"
    """What `alter` allows: any value, a larger one only, or none."""


def check_name(name: str) -> str:
    """`name` where it may name a topic of a user's.

    Raises:
        InvalidTopic: it breaks the naming rules, or is of the system's own.
    """
    if not _NAME.fullmatch(name):
        shown = name if len(name) <= 60 else name[:57] + "..."
        raise InvalidTopic(
            f"found topic name {shown!r}, expected 1 to {NAME_MAX} letters, digits, dots, "
            "underscores and hyphens"
        )
    if name in (".", ".."):
        raise InvalidTopic(f"found topic name {name!r}, expected more than dots")
    if is_internal(name):
        raise InvalidTopic(f"topic names that begin with __ are the system's own, found {name!r}")
    return name


def is_internal(name: str) -> bool:
    """Whether a topic is the system's own: nobody else writes, alters or deletes it."""
    return name.startswith("__")


def check_own(name: str) -> None:
    """Refuses what people may not do to a topic of the system's.

    Raises:
        InvalidTopic: it is one.
    """
    if is_internal(name):
        raise InvalidTopic(f"topic {name!r} is the system's own: it can be read, and nothing else")


def parse(pairs: Mapping[str, int | str]) -> dict[str, Value]:
    """Settings as people or clients write them, as values. Nothing is added, nothing compared.

    >>> parse({"partitions": "4", "retention": "7d", "retention_size": "unlimited"})
    {'partitions': 4, 'retention': 604800000, 'retention_size': None}

    Raises:
        InvalidSetting: a key is not a setting, or its value is not one of its own; `.details` has the `setting`.
    """
    return {name: parse_one(name, value) for name, value in pairs.items()}


def parse_one(name: str, value: int | str) -> Value:
    """One setting's value. Raises as `parse` does."""
    setting = SETTINGS.get(name)
    if setting is None:
        raise InvalidSetting(
            f"unknown setting {name!r}{did_you_mean(name, SETTINGS)}", setting=name
        )
    if isinstance(value, bool) or not isinstance(value, int | str):
        kind = type(value).__name__
        raise InvalidSetting(f"{name}: found a {kind}, expected text or a number", setting=name)
    try:
        return setting.read(value)
    except ValueError as problem:
        raise InvalidSetting(f"{name}: {problem}", setting=name) from None


def create(
    given: Mapping[str, Value], defaults: Mapping[str, Value] | None = None, *, nodes: int
) -> TopicSettings:
    """A new topic's settings: what was given, then the cluster's defaults, then zbroker's own.

    Left out, `replicas` is min(3, nodes) and `min_insync` min(2, replicas). A default gives way to what was
    given; what was given and cannot be met is an error.

    >>> create({"partitions": 4}, {"retention": None}, nodes=5).words()["min_insync"]
    2

    Raises:
        InvalidSetting: the settings contradict one another or the cluster; `.details` has the `setting`.
    """
    values = {**(defaults or {}), **given}
    values.setdefault("replicas", min(3, nodes))
    if "min_insync" not in given:
        wanted = values.get("min_insync", 2)
        values["min_insync"] = min(_count(wanted), _count(values["replicas"]))
    settings = TopicSettings(**values)  # type: ignore[arg-type]
    _check(settings, nodes)
    return settings


def alter(settings: TopicSettings, given: Mapping[str, Value]) -> TopicSettings:
    """An existing topic's settings with what was given changed.

    Raises:
        InvalidSetting: a setting that cannot change so; `.details` has the `setting`.
    """
    for name, value in given.items():
        old, change = getattr(settings, name), SETTINGS[name].change
        if change == "never" and value != old:
            raise InvalidSetting(
                f"{name} is fixed when a topic is created: it is {old}", setting=name
            )
        if change == "grow" and _count(value) < old:
            raise InvalidSetting(
                f"{name}: found {value}, expected at least {old}: it can only grow", setting=name
            )
    changed = msgspec.structs.replace(settings, **given)
    _check(changed, changed.replicas)
    return changed


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`, did you mean 'voters'?` for a word that is close to a known one, else the list of all.

    >>> did_you_mean("retenton", ["partitions", "retention"])
    ", did you mean 'retention'?"
    >>> did_you_mean("colour", ["partitions", "retention"])
    ', expected one of partitions, retention'
    """
    words = list(known)
    near = difflib.get_close_matches(word.lower().replace("-", "_"), words, n=1, cutoff=0.6)
    return f", did you mean {near[0]!r}?" if near else f", expected one of {', '.join(words)}"


def _check(settings: TopicSettings, nodes: int) -> None:
    """What one setting means for another, and what the cluster can bear."""
    if settings.replicas > nodes:
        cluster = "one node" if nodes == 1 else f"{nodes} nodes"
        raise InvalidSetting(
            f"replicas: found {settings.replicas}, expected at most {nodes}: the cluster has {cluster}",
            setting="replicas",
        )
    if settings.min_insync > settings.replicas:
        raise InvalidSetting(
            f"min_insync: found {settings.min_insync}, expected at most replicas, "
            f"which is {settings.replicas}",
            setting="min_insync",
        )


def _count(value: Value) -> int:
    assert isinstance(value, int), value
    return value


# How values are read and written --------------------------------------------------------------------


def _number(low: int, high: int) -> tuple[Callable[[int | str], Value], Callable[[Value], int]]:
    def read(value: int | str) -> int:
        text = str(value).strip()
        if not _WHOLE.fullmatch(text):
            raise UnitError(f"found {text!r}, expected a whole number from {low} to {high}")
        if not low <= int(text) <= high:
            raise UnitError(f"found {text}, expected {low} to {high}")
        return int(text)

    return read, _count


def _size(
    low: int, high: int, unlimited: str | None = None
) -> tuple[Callable[[int | str], Value], Callable[[Value], str]]:
    return _quantity(parse_size, format_size, low, high, unlimited)


def _duration(
    low: int, high: int, unlimited: str | None = None
) -> tuple[Callable[[int | str], Value], Callable[[Value], str]]:
    return _quantity(parse_duration, format_duration, low, high, unlimited)


def _quantity(
    parse_text: Callable[[int | str], int],
    write_number: Callable[[int], str],
    low: int,
    high: int,
    unlimited: str | None,
) -> tuple[Callable[[int | str], Value], Callable[[Value], str]]:
    def read(value: int | str) -> int | None:
        if unlimited is not None and value == unlimited:
            return None
        try:
            number = parse_text(value)
        except UnitError as problem:
            other = f", or {unlimited!r}" if unlimited is not None else ""
            raise UnitError(f"{problem}{other}") from None
        if not low <= number <= high:
            bounds = f"{write_number(low)} to {write_number(high)}"
            raise UnitError(f"found {str(value)!r}, expected {bounds}")
        return number

    def write(value: Value) -> str:
        return unlimited or "" if value is None else write_number(_count(value))

    return read, write


def _choice(
    *names: str, also: Mapping[str, str] | None = None
) -> tuple[Callable[[int | str], Value], Callable[[Value], str]]:
    """One of some words; `also` has other ways to write them."""

    def read(value: int | str) -> str:
        word = str(value).replace(" ", "") if also else value
        word = (also or {}).get(str(word), word)
        if word not in names:
            raise UnitError(f"found {str(value)!r}, expected {' or '.join(names)}")
        return str(word)

    return read, str


SETTINGS: dict[str, Setting] = {
    "partitions": Setting(
        *_number(1, PARTITIONS_MAX),
        doc="how many logs the topic is split into",
        change="grow",
    ),
    "replicas": Setting(
        *_number(1, 32),
        doc="how many nodes keep each partition; min(3, nodes) unless told",
        change="never",
    ),
    "min_insync": Setting(
        *_number(1, 32),
        doc="how many of them must have a record before it counts; min(2, replicas) unless told",
    ),
    "fsync": Setting(
        *_choice("always", "interval", "never"),
        doc="when a record counts as kept: once flushed to disk, or once written",
    ),
    "fsync_interval": Setting(
        *_duration(1, HOUR),
        doc="how often to flush where fsync is interval",
    ),
    "retention": Setting(
        *_duration(1, 100 * 365 * DAY, "forever"),
        doc="how long records are kept, counted from when they were appended",
    ),
    "retention_size": Setting(
        *_size(0, 1 << 60, "unlimited"),
        doc="how many bytes of a partition are kept",
    ),
    "segment_size": Setting(
        *_size(KIB, 2 * GIB),
        doc="a segment file's size before the next is begun",
    ),
    "segment_age": Setting(
        *_duration(1, 10 * 365 * DAY),
        doc="a segment file's age before the next is begun: only whole segments are retired",
    ),
    "max_batch": Setting(
        *_size(KIB, GIB),
        doc="the largest batch, decompressed; no single record can be larger",
    ),
    "timestamp": Setting(
        *_choice("create", "append"),
        doc="whose time records carry: the producer's, or the leader's when it appended them",
    ),
    "cleanup": Setting(
        *_choice("delete", "compact", "compact,delete", also={"delete,compact": "compact,delete"}),
        doc="what becomes of old records: deleted by retention, all but each key's newest, or both",
    ),
    "tombstone_grace": Setting(
        *_duration(0, 10 * 365 * DAY),
        doc="how long a compacted topic keeps a null value, which deletes its key, for readers to see",
    ),
    "min_dirty": Setting(
        *_number(1, 100),
        doc="percent of a compacted log that must be new before it is compacted again",
    ),
}
"""Every setting by its name, in the order in which they are shown."""
