"""Reads the fields of a TIFF's first directory that decide how its image is decoded (TIFF 6.0, BigTIFF)."""

import struct
from dataclasses import dataclass
from typing import IO

_WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _BANDS, _EXTRA = 256, 257, 258, 262, 277, 338
_TAGS = (_WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _BANDS, _EXTRA)
_GREY, _RGB = (0, 1), 2
_UNASSOCIATED_ALPHA = 2  # 1 is colour already multiplied by alpha, 0 any other band, often infrared
_TYPE_CODES = {1: "B", 3: "H", 4: "I", 16: "Q"}
_BIG_TIFF = 43
_MAX_ENTRIES = 4096


@dataclass(frozen=True, slots=True)
class TiffHeader:
    """Properties of the first page.

    Attributes:
        width, height: size, px.
        bands: samples per pixel.
        bits: bits of the widest sample.
        opacity: whether band 4 is unassociated alpha, by which the colours are not yet multiplied.
        unmarked: whether several bands are marked as grey, as GDAL writes 16-bit colour by default.
        rgb_patch: offset in the file, and the bytes that mark the bands as red, green and blue at that offset.
    """

    width: int
    height: int
    bands: int
    bits: int
    opacity: bool
    unmarked: bool
    rgb_patch: tuple[int, bytes]


def read_tiff_header(stream: IO[bytes]) -> TiffHeader:
    """Read the first directory of a TIFF.

    Raises:
        ValueError, struct.error: the directory is broken.
    """
    stream.seek(0)
    order = "<" if stream.read(2) == b"II" else ">"
    big = _unpack(stream, order + "H") == _BIG_TIFF
    if big:
        stream.seek(8)
    stream.seek(_unpack(stream, order + ("Q" if big else "I")))
    count = _unpack(stream, order + ("Q" if big else "H"))
    if count > _MAX_ENTRIES:
        raise ValueError(f"{count} directory entries")
    first, entry_bytes, inline_bytes = stream.tell(), 20 if big else 12, 8 if big else 4
    values: dict[int, tuple[int, ...]] = {}
    positions: dict[int, int] = {}
    for number in range(count):
        stream.seek(first + number * entry_bytes)
        tag, kind = _unpack(stream, order + "H"), _unpack(stream, order + "H")
        length = _unpack(stream, order + ("Q" if big else "I"))
        if tag not in _TAGS or kind not in _TYPE_CODES or not 1 <= length <= _MAX_ENTRIES:
            continue
        layout = f"{order}{length}{_TYPE_CODES[kind]}"
        if struct.calcsize(layout) > inline_bytes:
            stream.seek(_unpack(stream, order + ("Q" if big else "I")))
        positions[tag] = stream.tell()
        values[tag] = struct.unpack(layout, stream.read(struct.calcsize(layout)))
    if _WIDTH not in values or _HEIGHT not in values:
        raise ValueError("no size given")
    bands = values.get(_BANDS, (1,))[0]
    unmarked = bands > 2 and values.get(_PHOTOMETRIC, (_RGB,))[0] in _GREY
    extra = values.get(_EXTRA, () if unmarked else (_UNASSOCIATED_ALPHA,))
    return TiffHeader(
        width=values[_WIDTH][0],
        height=values[_HEIGHT][0],
        bands=bands,
        bits=max(values.get(_BITS, (1,))),
        opacity=bands == 4 and extra == (_UNASSOCIATED_ALPHA,),
        unmarked=unmarked,
        rgb_patch=(positions.get(_PHOTOMETRIC, 0), struct.pack(order + "H", _RGB)),
    )


def _unpack(stream: IO[bytes], layout: str) -> int:
    value: int = struct.unpack(layout, stream.read(struct.calcsize(layout)))[0]
    return value
