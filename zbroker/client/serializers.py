"""Python objects to bytes and back: `"msgpack"`, `"json"`, or functions of the user's. None always passes through.

Never guesses: without a serializer a value is bytes, or a str, which is its UTF-8.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import msgspec

from zbroker.client.records import Headers
from zbroker.errors import InvalidRequest, SerializationError

Serializer = Literal["msgpack", "json"] | Callable[[Any], bytes | str] | None
Deserializer = Literal["msgpack", "json"] | Callable[[bytes], Any] | None
ToBytes = Callable[[Any], bytes | None]
FromBytes = Callable[[bytes], Any]


def to_bytes(value: Any, what: str = "value") -> bytes | None:
    """Bytes as they are, a str as its UTF-8, None as None; `SerializationError` for all else."""
    if value is None or type(value) is bytes:
        return value
    if isinstance(value, str):
        try:
            return value.encode()
        except UnicodeEncodeError as error:
            raise SerializationError(f"the {what} is no valid Unicode: {error}") from None
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    raise SerializationError(
        f"a {what} is bytes, str or None, and this is a {type(value).__name__}; "
        'serializer="msgpack" or "json" carries Python objects'
    )


def serializer(choice: Serializer, what: str) -> ToBytes | None:
    """The function of a choice; None where nothing is to be done but `to_bytes`."""
    if choice is None:
        return None
    if choice == "msgpack":
        encode: Callable[[Any], bytes | str] = msgspec.msgpack.encode
    elif choice == "json":
        encode = msgspec.json.encode
    elif callable(choice):
        encode = choice
    else:
        raise InvalidRequest(f'a serializer is "msgpack", "json" or a function, not {choice!r}')

    def serialize(value: Any) -> bytes | None:
        if value is None:
            return None
        try:
            encoded = encode(value)
        except Exception as error:
            raise SerializationError(
                f"the {what} cannot be serialized: {type(error).__name__}: {error}"
            ) from error
        return to_bytes(encoded, f"serialized {what}")

    return serialize


def deserializer(choice: Deserializer) -> FromBytes | None:
    """The function of a choice; it may raise whatever it likes."""
    if choice is None:
        return None
    if choice == "msgpack":
        return msgspec.msgpack.Decoder().decode
    if choice == "json":
        return msgspec.json.Decoder().decode
    if callable(choice):
        return choice
    raise InvalidRequest(f'a deserializer is "msgpack", "json" or a function, not {choice!r}')


def checked_headers(headers: Any) -> Headers:
    """Headers as the batch keeps them: (str, bytes or None) each; a dict's items, in order."""
    if not headers:
        return ()
    pairs: Iterable[Any] = headers.items() if isinstance(headers, dict) else headers
    checked = []
    try:
        for name, content in pairs:
            if not isinstance(name, str):
                raise SerializationError(f"a header's name is a str, not {name!r}")
            name.encode()
            checked.append((name, to_bytes(content, f"header {name!r}")))
    except (TypeError, ValueError) as error:
        raise SerializationError(f"headers are (name, bytes) pairs: {error}") from None
    return tuple(checked)
