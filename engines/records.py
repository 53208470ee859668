"""The base of what is stored as JSON, or reported as such."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from .errors import BadInputError

if TYPE_CHECKING:
    from typing import Self


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A record whose fields are its JSON form. Ranges of fields are checked when it is read, contradictions always."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form; a number that is not finite is null, a path its text. peft calls it on a model's config."""
        document: dict[str, Any] = _plain(msgspec.to_builtins(self, enc_hook=str, str_keys=True))
        return document

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "Self":
        """Read what ``to_dict`` gave.

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
