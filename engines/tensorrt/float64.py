"""Finds float64 in an ONNX file: TensorRT's parser converts it to float32 and does not say so.

Reads the few fields of the protocol-buffer format that this takes, because the runtime does without the onnx package.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

_DOUBLE = 11  # TensorProto.DOUBLE
# Numbers of fields in onnx.proto.
_GRAPH = 7
_NODE, _INITIALIZER = 1, 5
_INPUTS, _NODE_NAME, _ATTRIBUTES = 1, 3, 5
_ATTRIBUTE_NAME, _INT, _TENSOR = 1, 3, 5
_DATA_TYPE, _TENSOR_NAME = 2, 8


def float64_node(path: Path) -> str | None:
    """Return the name of the first node of a graph that uses a float64 constant or casts to float64, or None."""
    for graph in _get(memoryview(path.read_bytes()), _GRAPH):
        constants = {
            _text(tensor, _TENSOR_NAME) for tensor in _get(graph, _INITIALIZER) if _DOUBLE in _get(tensor, _DATA_TYPE)
        }
        for node in _get(graph, _NODE):
            attributes = _get(node, _ATTRIBUTES)
            casts = any(_text(one, _ATTRIBUTE_NAME) == "to" and _DOUBLE in _get(one, _INT) for one in attributes)
            holds = any(_DOUBLE in _get(tensor, _DATA_TYPE) for one in attributes for tensor in _get(one, _TENSOR))
            if casts or holds or any(bytes(name).decode() in constants for name in _get(node, _INPUTS)):
                return _text(node, _NODE_NAME)
    return None


def _get(message: memoryview, number: int) -> list[Any]:
    return [value for found, value in _fields(message) if found == number]


def _text(message: memoryview, number: int) -> str:
    return "".join(bytes(value).decode() for value in _get(message, number))


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """Yield number and value of every field of a message: an int, or the bytes of a text, message or array."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield key >> 3, value
            continue
        size, at = _varint(message, at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
        yield key >> 3, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value, shift, at = value | (byte & 0x7F) << shift, shift + 7, at + 1
        if byte < 0x80:
            return value, at
