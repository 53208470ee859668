"""A bench's JSON-lines log: every round is kept as soon as it is over, and a bench that was killed goes on with it.

The first line says what is measured. Then follow, in the order they came, one line for each observation, one that
closes each round, and whatever else is worth keeping (``{"kind": "peaks", ...}``). A round that was not closed does not
count.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rsrefseg.engines.errors import BadInputError, RSRefSegError
from rsrefseg.engines.system.files import atomic_write_text, unwritable

from .rounds import Observation

SCHEMA_VERSION = 1
_HEADER, _OBSERVATION, _ROUND = "bench", "observation", "round"
_NAMED = 3  # differences in an error

Entry = dict[str, Any]


class Journal:
    """An open log. Made by ``open_journal``.

    Attributes:
        path: the file.
        observations: of all whole rounds, in their order.
        rounds_done: how many those are.
    """

    def __init__(self, path: Path, entries: Sequence[Entry]) -> None:
        self.path = path
        self.observations: list[Observation] = []
        self.rounds_done = 0
        self._others: list[Entry] = []
        for entry in entries:
            if entry["kind"] == _OBSERVATION:
                self.observations.append(Observation(**{key: entry[key] for key in entry if key != "kind"}))
            elif entry["kind"] == _ROUND:
                self.rounds_done += 1
            else:
                self._others.append(entry)
        self._size_bytes = path.stat().st_size

    def entries(self, kind: str) -> list[Entry]:
        """What ``append`` was given under a kind."""
        return [{key: entry[key] for key in entry if key != "kind"} for entry in self._others if entry["kind"] == kind]

    def append(self, kind: str, values: Mapping[str, Any]) -> None:
        """Keep values that JSON knows.

        Raises:
            RSRefSegError: the disk is full, the file cannot be written, or another process writes to it too.
        """
        assert kind not in (_HEADER, _OBSERVATION, _ROUND)
        entry = {"kind": kind, **values}
        self._write([entry])
        self._others.append(entry)

    def append_round(self, seen: Sequence[Observation]) -> None:
        """Keep the next round, of number ``rounds_done``, and close it.

        Raises:
            RSRefSegError: as ``append``.
        """
        assert all(one.round == self.rounds_done for one in seen), "rounds come one after the other"
        lines: list[Entry] = [{"kind": _OBSERVATION, **asdict(one)} for one in seen]
        self._write([*lines, {"kind": _ROUND, "round": self.rounds_done, "observations": len(seen)}])
        self.observations += seen
        self.rounds_done += 1

    def _write(self, entries: Sequence[Entry]) -> None:
        try:
            with self.path.open("ab") as stream:
                if os.fstat(stream.fileno()).st_size != self._size_bytes:
                    raise RSRefSegError(f"another bench writes to '{self.path}': give each a log of its own")
                stream.write(_lines(entries))
                stream.flush()
                os.fsync(stream.fileno())
                self._size_bytes = os.fstat(stream.fileno()).st_size
        except OSError as error:
            raise unwritable(self.path, error) from error


def open_journal(path: Path, identity: Mapping[str, Any]) -> Journal:
    """Begin a log, or go on with one after its last whole round.

    Args:
        path: the file; folders above it are made.
        identity: what must be the same for rounds to be put together: the model, the machine, the versions, the
            contenders, the settings. Values that JSON knows.

    Raises:
        BadInputError: the file is another's, is damaged before its end, or was begun with another identity; the message
            names what differs.
        RSRefSegError: it cannot be written.
    """
    known = json.loads(json.dumps(identity))
    data = _read(path)
    if not data:
        header = {
            "kind": _HEADER,
            "schema_version": SCHEMA_VERSION,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "identity": known,
        }
        atomic_write_text(path, _lines([header]).decode())
        return Journal(path, [])
    header, *entries = _parse(path, data)
    if header.get("kind") != _HEADER or header.get("schema_version") != SCHEMA_VERSION:
        raise BadInputError(f"'{path}' is no log of this release's bench: name another file, or remove it")
    if different := list(_differences(header.get("identity"), known, "")):
        told = "; ".join(different[:_NAMED]) + ("; ..." if len(different) > _NAMED else "")
        raise BadInputError(f"'{path}' is the log of another measurement ({told}): name another file, or remove it")
    kept = _whole_rounds(path, entries)
    if data != (whole := _lines([header, *kept])):
        atomic_write_text(path, whole.decode())
    return Journal(path, kept)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise BadInputError(f"cannot read '{path}': {error.strerror or error}") from error


def _lines(entries: Sequence[Entry]) -> bytes:
    return "".join(json.dumps(entry) + "\n" for entry in entries).encode()


def _parse(path: Path, data: bytes) -> list[Entry]:
    """All lines but a last one that was not finished."""
    *lines, _ = data.split(b"\n")
    entries = []
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        if not isinstance(entry, dict) or not isinstance(entry.get("kind"), str):
            raise BadInputError(f"'{path}' is no log of a bench, or damaged (line {number}): name another file")
        entries.append(entry)
    if not entries:
        raise BadInputError(f"'{path}' is no log of a bench: name another file, or remove it")
    return entries


def _whole_rounds(path: Path, entries: Sequence[Entry]) -> list[Entry]:
    """Without the observations of a round that was not closed."""
    kept: list[Entry] = []
    pending: list[Entry] = []
    rounds = 0
    for entry in entries:
        if entry["kind"] == _OBSERVATION:
            pending.append(entry)
        elif entry["kind"] == _ROUND:
            whole = entry == {"kind": _ROUND, "round": rounds, "observations": len(pending)}
            if not whole or not all(_is_observation(one, rounds) for one in pending):
                raise BadInputError(f"'{path}' is damaged (round {rounds}): name another file, or remove it")
            kept += [*pending, entry]
            pending = []
            rounds += 1
        else:
            kept.append(entry)
    return kept


def _is_observation(entry: Entry, number: int) -> bool:
    spans = entry.get("spans_ms")
    return (
        entry.keys() - {"kind"} == set(Observation.__dataclass_fields__)
        and entry["round"] == number
        and all(isinstance(entry[name], str) for name in ("contender", "scenario"))
        and isinstance(spans, dict)
        and all(isinstance(value, int | float) for value in spans.values())
    )


def _differences(there: Any, here: Any, name: str) -> Iterator[str]:
    """One text for each value that is not the same, by its dotted name."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in dict.fromkeys((*there, *here)):
            yield from _differences(there.get(key), here.get(key), f"{name}.{key}" if name else key)
    elif there != here:
        yield f"{name} {_text(there)} there, {_text(here)} here"


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(_text(item) for item in value)
    text = "none" if value is None else str(value)
    # Digests are told by how they begin, names in full.
    return text if len(text) <= 40 or " " in text else f"{text[:12]}..."
