"""Compressing a batch's payload as a whole, and undoing it within bounds.

Owns the three codecs and their numbers on the wire. Decompression never yields more than the length
that the batch's header declares, whatever the data claim of themselves: a bomb is refused after that
many bytes. The codecs' libraries are loaded when first used.
"""

from __future__ import annotations

import functools
import sys
from typing import Any, Literal, get_args

from zbroker.errors import InvalidBatch, UnsupportedAttribute

Compression = Literal["none", "lz4", "zstd"]

CODECS: tuple[Compression, ...] = get_args(Compression)
"""Compression names; a name's index is its number in a batch's attributes."""

ZSTD_WINDOW_LOG_MAX = 23
"""Largest window of a Zstandard frame, as a power of two: 8 MiB, the bound of RFC 9659. A decoder
allocates the window that a frame asks for, so that a few bytes could cost 128 MiB otherwise."""

LZ4_RATIO_MAX = 255
"""Bytes that one byte of LZ4 can stand for, at most."""

LZ4, ZSTD = CODECS.index("lz4"), CODECS.index("zstd")


def codec_number(name: str) -> int:
    """The number of a compression by its name; `ValueError` names those that exist."""
    if name not in CODECS:
        raise ValueError(f"compression is one of {', '.join(CODECS)}, not {name!r}")
    return CODECS.index(name)


def compress(codec: int, data: bytes | bytearray) -> bytes | bytearray:
    """`data` as one LZ4 frame or one Zstandard frame, or as it is for codec 0."""
    if codec == LZ4:
        compressed: bytes = _lz4().compress(data, store_size=False)
        return compressed
    if codec == ZSTD:
        squeezed: bytes = _zstd().compress(bytes(data))
        return squeezed
    return data


def decompress(codec: int, data: bytes | memoryview, length: int) -> bytes | memoryview:
    """Exactly `length` bytes out of one compressed frame.

    Raises:
        InvalidBatch: the frame is broken, is followed by something, or holds more or fewer bytes
            than `length`.
        UnsupportedAttribute: the codec is not known.
    """
    if codec == 0:
        out: bytes | memoryview = data
    elif codec == LZ4:
        if length > len(data) * LZ4_RATIO_MAX:  # the library allocates `length` at once
            raise InvalidBatch(
                f"{len(data)} bytes of LZ4 cannot hold the {length} that the batch declares"
            )
        out = _bounded(_lz4().LZ4FrameDecompressor(), data, length, "LZ4")
    elif codec == ZSTD:
        out = _bounded(_zstd_decompressor(), data, length, "Zstandard")
    else:
        raise UnsupportedAttribute(
            f"compression {codec} is not known here; known are 0 none, 1 lz4, 2 zstd"
        )
    if len(out) != length:
        raise InvalidBatch(f"the payload holds {len(out)} bytes, but its header declares {length}")
    return out


def _bounded(decompressor: Any, data: bytes | memoryview, length: int, name: str) -> bytes:
    """One frame's content; a byte more than `length` is asked for, so that a longer frame shows."""
    try:
        out: bytes = decompressor.decompress(data, max_length=length + 1)
        while not decompressor.eof and len(out) <= length and not decompressor.needs_input:
            more = decompressor.decompress(b"", max_length=length + 1 - len(out))
            if not more:
                break
            out += more
    except (RuntimeError, ValueError, OSError, EOFError, MemoryError, _zstd_error()) as error:
        raise InvalidBatch(f"the payload is not a whole {name} frame: {error}") from None
    if len(out) > length:
        raise InvalidBatch(
            f"the payload holds more than the {length} bytes that its header declares"
        )
    if not decompressor.eof:
        raise InvalidBatch(f"the payload's {name} frame is cut short")
    if decompressor.unused_data:
        raise InvalidBatch(
            f"{len(decompressor.unused_data)} bytes follow the payload's {name} frame"
        )
    return out


@functools.cache
def _lz4() -> Any:
    import lz4.frame

    return lz4.frame


@functools.cache
def _zstd() -> Any:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd


def _zstd_decompressor() -> Any:
    zstd = _zstd()
    options = {zstd.DecompressionParameter.window_log_max: ZSTD_WINDOW_LOG_MAX}
    return zstd.ZstdDecompressor(options=options)


@functools.cache
def _zstd_error() -> type[Exception]:
    error: type[Exception] = _zstd().ZstdError
    return error
