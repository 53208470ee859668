"""The base class of records that are stored or reported as JSON."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from .errors import BadInputError

if TYPE_CHECKING:
    from typing import Self


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A record with one JSON key per field. Reading checks the ranges of fields, construction their consistency."""

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-serialisable dict: NaN and infinity become None, paths strings. peft calls it on configs."""
        document: dict[str, Any] = _plain(msgspec.to_builtins(self, enc_hook=str, str_keys=True))
        return document

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "Self":
        """Create a record from the result of ``to_dict``.

        Raises:
            BadInputError: a field is missing, unknown, of another type, out of range or contradicts another.
        """
        try:
            return msgspec.convert(value, cls)
        except msgspec.ValidationError as error:
            raise BadInputError(f"this {cls.__name__} cannot be read: {error}") from error


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
