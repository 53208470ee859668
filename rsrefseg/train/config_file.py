"""Training settings from a TOML file, or from one of the recipes that come with the package."""

import dataclasses
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from importlib import resources
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_type_hints

from rsrefseg.engines.errors import BadInputError
from rsrefseg.engines.text import Padding

from ..model.config import LoraSettings, Preset
from .config import LossWeights, TrainConfig

_RECIPES = ("b", "l")
_SUFFIX = ".toml"
_NESTED = ("lora", "loss")
# A file of settings is read whole: a few hundred bytes in practice.
_LARGEST_BYTES = 1 << 20
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def _fields(settings: type) -> dict[str, Any]:
    hints = get_type_hints(settings)
    return {name: hints[name] for name in (entry.name for entry in dataclasses.fields(settings)) if name not in _NESTED}


_TABLES: dict[str, dict[str, Any]] = {
    "model": {"preset": Preset, "text_padding": get_args(Padding), "dense_prompt": bool},
    "data": {"path": str, "images": str, "resize_masks": bool},
    "weights": {"base": str, "sam": str, "siglip": str, "tokenizer": str},
    "training": _fields(TrainConfig),
    "lora": _fields(LoraSettings),
    "loss": _fields(LossWeights),
}
_CHECKS: dict[str, Callable[..., object]] = {"training": TrainConfig, "lora": LoraSettings, "loss": LossWeights}


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """The tables of a file, every value of its kind and in its range; a table that is not there is empty."""

    source: str
    model: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    lora: Mapping[str, Any] = field(default_factory=dict)
    loss: Mapping[str, Any] = field(default_factory=dict)


def read_config_file(name: str) -> ConfigFile:
    """Read a settings file.

    Args:
        name: a path, or ``b`` or ``l`` for the shipped recipe of that preset.

    Raises:
        BadInputError: there is no such file, or it is no TOML; or names the first table, key or value that is unknown,
            of another kind or out of range, and what is allowed.
    """
    document = _parse(name)
    tables: dict[str, dict[str, Any]] = {}
    for table, content in document.items():
        if table not in _TABLES:
            raise BadInputError(f"'{name}': unknown table [{table}]: allowed are {_listed(_TABLES, '[{}]')}")
        if not isinstance(content, dict):
            raise BadInputError(f"'{name}': '{table}' must be a table: write [{table}] above its keys")
        tables[table] = {key: _value(name, table, key, value) for key, value in content.items()}
    return ConfigFile(name, **tables)


def _parse(name: str) -> dict[str, Any]:
    path = Path(str(resources.files("rsrefseg"))) / "train" / "recipes" / f"{name}{_SUFFIX}"
    if name not in _RECIPES:
        path = Path(name)
        if not path.is_file():
            raise BadInputError(f"settings '{name}' do not exist: give a TOML file, or one of {', '.join(_RECIPES)}")
    try:
        with path.open("rb") as stream:
            content = stream.read(_LARGEST_BYTES + 1)
        if len(content) > _LARGEST_BYTES:
            raise BadInputError(f"'{name}' is larger than any file of settings: give a TOML file")
        return tomllib.loads(content.decode("utf-8"))
    except OSError as error:
        raise BadInputError(f"settings '{name}' cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # TOML's and UTF-8's errors are both ValueErrors
        reason = " ".join(str(error).split())[:120]
        raise BadInputError(f"'{name}' is no TOML file ({reason})") from error


def _value(name: str, table: str, key: str, value: Any) -> Any:
    """One value, checked."""
    where = f"'{name}': [{table}] {key}"
    if key not in _TABLES[table]:
        raise BadInputError(f"{where} is no setting: allowed are {_listed(_TABLES[table])}")
    kind = _TABLES[table][key]
    if isinstance(kind, UnionType):  # None stands for a key that is left out
        kind = next(option for option in get_args(kind) if option is not type(None))
    choices = kind if isinstance(kind, tuple) else tuple(kind) if issubclass(kind, StrEnum) else None
    if choices is not None:
        if value not in choices:
            raise BadInputError(f"{where} is {value!r}: allowed are {_listed(choices)}")
        return value if isinstance(kind, tuple) else kind(value)
    if not (type(value) is kind or (kind is float and type(value) is int)):
        raise BadInputError(f"{where} must be {_KINDS[kind]}, not {value!r}")
    if table in _CHECKS:
        try:
            _CHECKS[table](**{key: value})
        except BadInputError as error:
            raise BadInputError(f"'{name}': [{table}] {error}") from error
    return value


def _listed(names: Any, form: str = "{}") -> str:
    return ", ".join(form.format(name) for name in names)
