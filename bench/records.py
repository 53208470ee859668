"""The base of what commands report."""

from typing import Any

import msgspec


class Record(msgspec.Struct, frozen=True):
    """A record whose fields are its JSON form."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form; a number that is not finite is null, a path its text."""
        document: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(self, enc_hook=str))
        return document
