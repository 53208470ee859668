"""Frozen settings that are stored as JSON and checked when they are read."""

from collections.abc import Mapping
from typing import Any, Self

import msgspec

from rsrefseg.engines.errors import BadInputError


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Settings by name. Ranges of single fields are checked when they are read, contradictions always."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able form; ``from_dict`` reads it back."""
        document: dict[str, Any] = msgspec.to_builtins(self)
        return document

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Self:
        """Read what ``to_dict`` gave.

        Raises:
            BadInputError: a field is missing, unknown, of another type, out of range or contradicts another.
        """
        try:
            return msgspec.convert(value, cls)
        except msgspec.ValidationError as error:
            raise BadInputError(f"this {cls.__name__} cannot be read: {error}") from error
