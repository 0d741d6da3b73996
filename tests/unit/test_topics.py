"""Topic names and settings: the vocabulary, the defaults, what may change later, and the words of each refusal."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zbroker import topics
from zbroker.errors import InvalidSetting, InvalidTopic
from zbroker.topics import DAY, KIB, MIB, TopicSettings

SETTINGS = st.builds(
    TopicSettings,
    partitions=st.integers(1, topics.PARTITIONS_MAX),
    replicas=st.just(3),
    min_insync=st.integers(1, 3),
    fsync=st.sampled_from(["always", "interval", "never"]),
    fsync_interval=st.integers(1, topics.HOUR),
    retention=st.none() | st.integers(1, 100 * 365 * DAY),
    retention_size=st.none() | st.integers(0, 1 << 60),
    segment_size=st.integers(KIB, 2 << 30),
    segment_age=st.integers(1, 10 * 365 * DAY),
    max_batch=st.integers(KIB, 1 << 30),
    timestamp=st.sampled_from(["create", "append"]),
)


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        ("partitions", "4", 4),
        ("partitions", 4, 4),
        ("fsync", "never", "never"),
        ("fsync_interval", "250ms", 250),
        ("retention", "1h30m", 5_400_000),
        ("retention", "forever", None),
        ("retention_size", "10GiB", 10 << 30),
        ("retention_size", 1000, 1000),
        ("retention_size", "unlimited", None),
        ("segment_size", "1MiB", MIB),
        ("max_batch", "2MB", 2_000_000),
        ("timestamp", "append", "append"),
        ("cleanup", "delete", "delete"),
    ],
)
def test_a_setting(name: str, value: int | str, kept: topics.Value) -> None:
    assert topics.parse({name: value}) == {name: kept}


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("retenton", "7d", "unknown setting 'retenton', did you mean 'retention'?"),
        ("min-insync", "2", "unknown setting 'min-insync', did you mean 'min_insync'?"),
        ("Partitions", "2", "unknown setting 'Partitions', did you mean 'partitions'?"),
        ("colour", "red", "unknown setting 'colour', expected one of partitions, replicas, "),
        ("", "red", "unknown setting '', expected one of partitions, replicas, "),
        ("partitions", "four", "partitions: found 'four', expected a whole number from 1 to 4096"),
        ("partitions", "", "partitions: found '', expected a whole number"),
        ("partitions", 0, "partitions: found 0, expected 1 to 4096"),
        ("partitions", 4097, "partitions: found 4097, expected 1 to 4096"),
        ("partitions", True, "partitions: found a bool, expected text or a number"),
        ("partitions", 2.0, "partitions: found a float, expected text or a number"),
        ("partitions", None, "partitions: found a NoneType, expected text or a number"),
        ("retention", 7, "retention: found '7', which has no unit"),
        ("retention", "soon", "7d, or 'forever'"),
        ("retention", "unlimited", "retention: found 'unlimited', expected a duration"),
        ("retention", "0", "retention: found '0', expected 1ms to 36500d"),
        ("retention_size", "forever", "or 'unlimited'"),
        ("segment_size", "1B", "segment_size: found '1B', expected 1KiB to 2GiB"),
        ("segment_age", "forever", "segment_age: found 'forever', expected a duration"),
        ("fsync", "Always", "fsync: found 'Always', expected always or interval or never"),
        ("fsync", 1, "fsync: found '1', expected always or interval or never"),
        ("timestamp", "log", "timestamp: found 'log', expected create or append"),
        ("cleanup", "burn", "cleanup: found 'burn', expected delete or compact or compact,delete"),
        ("cleanup", "compact,burn", "cleanup: found 'compact,burn', expected delete or compact"),
        ("tombstone_grace", "forever", "tombstone_grace: found 'forever', expected a duration"),
        ("min_dirty", 0, "min_dirty: found 0, expected 1 to 100"),
        ("min_dirty", "50%", "min_dirty: found '50%', expected a whole number from 1 to 100"),
    ],
)
def test_not_a_setting(name: str, value: Any, problem: str) -> None:
    with pytest.raises(InvalidSetting) as caught:
        topics.parse({"partitions": 1, name: value})
    assert problem in str(caught.value)
    assert caught.value.code == "invalid_setting"
    assert caught.value.details == {"setting": name}


def test_every_setting_is_a_field_with_its_own_row() -> None:
    assert list(topics.SETTINGS) == list(TopicSettings.__struct_fields__)
    assert all(setting.doc for setting in topics.SETTINGS.values())


@given(SETTINGS)
def test_words_read_back(settings: TopicSettings) -> None:
    words = settings.words()
    assert topics.create(topics.parse(words), nodes=3) == settings
    texts = {name: str(value) for name, value in words.items()}
    assert topics.create(topics.parse(texts), nodes=3) == settings


@given(SETTINGS)
def test_stored_settings_read_back(settings: TopicSettings) -> None:
    data = msgspec.msgpack.encode(settings)
    assert msgspec.msgpack.decode(data, type=TopicSettings) == settings


@pytest.mark.parametrize(
    ("given", "defaults", "nodes", "replicas", "min_insync"),
    [
        ({}, {}, 1, 1, 1),
        ({}, {}, 2, 2, 2),
        ({}, {}, 9, 3, 2),
        ({"replicas": 5}, {}, 9, 5, 2),
        ({"replicas": 1}, {}, 9, 1, 1),
        ({"min_insync": 1}, {}, 3, 3, 1),
        ({}, {"replicas": 2}, 3, 2, 2),
        ({}, {"min_insync": 3}, 3, 3, 3),
        ({"replicas": 1}, {"replicas": 3, "min_insync": 3}, 3, 1, 1),
        ({"min_insync": 1}, {"min_insync": 3}, 3, 3, 1),
    ],
)
def test_replicas_and_min_insync(
    given: dict[str, Any], defaults: dict[str, Any], nodes: int, replicas: int, min_insync: int
) -> None:
    settings = topics.create(given, defaults, nodes=nodes)
    assert (settings.replicas, settings.min_insync) == (replicas, min_insync)


@pytest.mark.parametrize(
    ("given", "defaults", "problem"),
    [
        ({"replicas": 4}, {}, "replicas: found 4, expected at most 3: the cluster has 3 nodes"),
        ({"min_insync": 4}, {}, "min_insync: found 4, expected at most replicas, which is 3"),
        ({"min_insync": 2}, {"replicas": 1}, "min_insync: found 2, expected at most replicas"),
    ],
)
def test_what_the_cluster_cannot_meet(
    given: dict[str, Any], defaults: dict[str, Any], problem: str
) -> None:
    with pytest.raises(InvalidSetting, match=problem) as caught:
        topics.create(given, defaults, nodes=3)
    assert caught.value.details == {"setting": problem.split(":")[0]}


def test_what_is_given_goes_before_the_defaults() -> None:
    settings = topics.create({"partitions": 2}, {"partitions": 8, "retention": None}, nodes=1)
    assert settings == TopicSettings(partitions=2, retention=None)


def test_altering() -> None:
    before = topics.create({"partitions": 2, "replicas": 3}, nodes=3)
    given = topics.parse({"partitions": 4, "retention": "1d", "replicas": 3, "min_insync": 3})
    after = topics.alter(before, given)
    assert after == msgspec.structs.replace(before, partitions=4, retention=DAY, min_insync=3)
    assert topics.alter(before, {}) == before


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"replicas": 2}, "replicas is fixed when a topic is created: it is 3"),
        ({"partitions": 1}, "partitions: found 1, expected at least 2: it can only grow"),
        ({"min_insync": 4}, "min_insync: found 4, expected at most replicas, which is 3"),
    ],
)
def test_what_cannot_be_altered(given: dict[str, Any], problem: str) -> None:
    before = topics.create({"partitions": 2}, nodes=3)
    with pytest.raises(InvalidSetting, match=problem):
        topics.alter(before, given)


@pytest.mark.parametrize("name", ["a", "A.b_c-9", "-", "...", "_x", "a" * 249])
def test_a_name(name: str) -> None:
    assert topics.check_name(name) == name


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("", "found topic name '', expected 1 to 249 letters, digits, dots"),
        ("a" * 250, "expected 1 to 249 letters"),
        ("a/b", "found topic name 'a/b'"),
        ("ä", "expected 1 to 249 letters"),
        ("a\n", "expected 1 to 249 letters"),
        (".", "found topic name '.', expected more than dots"),
        ("..", "found topic name '..', expected more than dots"),
        ("__offsets", "topic names that begin with __ are the system's own"),
    ],
)
def test_not_a_name(name: str, problem: str) -> None:
    with pytest.raises(InvalidTopic) as caught:
        topics.check_name(name)
    assert problem in str(caught.value)
    assert len(str(caught.value)) < 200
