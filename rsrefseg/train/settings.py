"""Resolves training settings: options override a TOML file or shipped recipe, which overrides defaults."""

import tomllib
from collections.abc import Mapping
from functools import reduce
from importlib import resources
from operator import getitem
from pathlib import Path
from typing import Annotated, Any, get_args

import msgspec
from msgspec import Meta, Struct, structs
from msgspec.structs import replace

from rsrefseg.engines.errors import BadInputError
from rsrefseg.engines.images.images import Resize
from rsrefseg.engines.text import Padding

from ..model.config import LoraSettings, ModelConfig, Preset, model_config
from ..model.preprocessing import Channels, Preprocessing, choose_preprocessing
from ..runs.run import Run
from .config import FROM_SCRATCH, LossWeights, Precision, TrainConfig

RECIPES = ("s", "b", "l", "rsrefseg2")
_PUBLIC_FILES = {"sam", "siglip"}
# Settings of the data sets that a run records and keeps, besides their paths and shares.
RECORDED_DATA = ("drop_shared", "resize_masks", "train_split", "validation_split")
_BASES = {"base", "from_scratch", "random_weights", *_PUBLIC_FILES}

Tables = dict[str, dict[str, Any]]


class ModelSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the model to train: a preset, and what differs from it."""

    preset: Preset = Preset.TINY
    text_padding: Padding | None = None
    dense_prompt: bool | None = None

    def config(self) -> ModelConfig:
        """Return the configuration of the model.

        Raises:
            BadInputError: the preset does not have that text padding or dense prompt.
        """
        changes = {name: value for name, value in structs.asdict(self).items() if name != "preset"}
        return replace(
            model_config(self.preset), **{name: value for name, value in changes.items() if value is not None}
        )


class PreprocessingSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A profile, or the files' preprocessing, with single values of ``Preprocessing`` in place of its own."""

    profile: str | None = None
    image_size: int | None = None
    resize: Resize | None = None
    siglip_mean: Channels | None = None
    siglip_std: Channels | None = None
    sam_mean: Channels | None = None
    sam_std: Channels | None = None

    def __post_init__(self) -> None:
        self.of(Preprocessing())

    def of(self, default: Preprocessing) -> Preprocessing:
        """Return the preprocessing of a model whose files say ``default``."""
        return choose_preprocessing(default, **structs.asdict(self))


class DataSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the data sets, whose splits are joined.

    Attributes:
        path: folders or files; a TOML file may have a single one.
        images: another image folder than that of the format, for a single data set.
        share: share of each data set's training images that an epoch draws; all of them by default.
        drop_shared: leave out training images that another data set has in its validation or test split.
        resize_masks: resize masks of another size than their image.
        train_split, validation_split: names of the splits; an empty one means no validation.
    """

    path: tuple[Path, ...] = ()
    images: Path | None = None
    share: tuple[Annotated[float, Meta(gt=0, le=1)], ...] = ()
    drop_shared: bool = False
    resize_masks: bool = False
    train_split: str = "train"
    validation_split: str | None = "val"

    def __post_init__(self) -> None:
        if self.share and len(self.share) != len(self.path):
            raise BadInputError(f"{len(self.share)} --share for {len(self.path)} --data: give one for each, or none")
        if self.images is not None and len(self.path) > 1:
            raise BadInputError("--images goes with one --data: put the images into the folders of their formats")
        if len({path.resolve() for path in self.path}) < len(self.path):
            raise BadInputError("--data names the same data set twice: name each once, with its --share")

    @property
    def shares(self) -> tuple[float, ...]:
        """The share of each data set."""
        return self.share or (1.0,) * len(self.path)

    def record(self) -> dict[str, Any]:
        """Return what a run records of them, except their paths."""
        return {"share": [*self.shares], **{name: getattr(self, name) for name in RECORDED_DATA}}


class WeightsSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the initial weights: at most one of ``base``, ``sam`` and ``siglip``, and the two flags."""

    base: Path | None = None
    sam: Path | None = None
    siglip: Path | None = None
    from_scratch: bool = False
    random_weights: bool = False
    tokenizer: Path | None = None

    def __post_init__(self) -> None:
        if (self.sam is None) != (self.siglip is None):
            raise BadInputError("--sam and --siglip go together: give both")
        choices = {
            "--from-scratch": self.from_scratch,
            "--base": self.base is not None,
            "--sam and --siglip": self.sam is not None,
            "--random-weights": self.random_weights,
        }
        if len(given := [name for name, chosen in choices.items() if chosen]) > 1:
            raise BadInputError(f"{' and '.join(given)} contradict each other: give one of them")


class Settings(Struct, frozen=True, kw_only=True):
    """All settings of a training; ``given`` has the values of the file and the options by table."""

    model: ModelSettings
    preprocessing: PreprocessingSettings
    data: DataSettings
    weights: WeightsSettings
    training: TrainConfig
    given: Tables

    def refuse_changes(self, run: Run, model: ModelConfig) -> None:
        """Check that the given settings equal those of an existing run.

        Args:
            run: run with a record.
            model: configuration from these settings.

        Raises:
            BadInputError: a setting differs; the message names the first one.
        """
        record = run.read_record()
        before = ModelConfig.from_dict(record["model"]).preprocessing
        recorded = _by_table(TrainConfig.from_dict(record["train"]))
        recorded |= {"model": record["model"], "preprocessing": _with_profile(before)}
        wanted = _by_table(self.training)
        wanted |= {"model": model.to_dict(), "preprocessing": _with_profile(self.preprocessing.of(before))}
        wanted["data"] = self.data.record()
        recorded["data"] = record["data"]
        for table, values in self.given.items():
            for name in values.keys() & wanted.get(table, {}).keys():
                was, now = recorded[table].get(name), wanted[table][name]
                if was != now:
                    raise BadInputError(
                        f"'{run.path}' was started with {name} {was}, not {now}: leave it out to continue the run, "
                        "or give another --out"
                    )


_TABLES: dict[str, type[Struct]] = {
    "model": ModelSettings,
    "preprocessing": PreprocessingSettings,
    "data": DataSettings,
    "weights": WeightsSettings,
    "training": TrainConfig,
    "lora": LoraSettings,
    "loss": LossWeights,
}


def resolve_settings(file: str | None, options: Mapping[str, Any]) -> Settings:
    """Merge defaults, file and options; later ones override earlier ones.

    Args:
        file: path of a TOML file, or the name of a preset with a shipped recipe.
        options: values by field name of the settings classes; ``rank`` also sets ``alpha``.

    Raises:
        BadInputError: the file cannot be read, or a value is unknown, has another type, is out of range or contradicts
            another.
    """
    given: Tables = {}
    if file is not None:
        given = _read_toml(file)
        _convert(given, file)
    if "rank" in options:
        options = {"alpha": options["rank"], **options}
    if replaced := _BASES & options.keys():
        kept = {"tokenizer", *(_PUBLIC_FILES if replaced <= _PUBLIC_FILES else ())}
        given["weights"] = {name: value for name, value in given.get("weights", {}).items() if name in kept}
    for name, value in options.items():
        table = next(table for table, struct in _TABLES.items() if name in struct.__struct_fields__)
        given[table] = given.get(table, {}) | {name: value}
    settings = _convert(given, None)
    if settings.weights.from_scratch and "lora" in given:
        where = f", but '{file}' has a table [lora]" if file is not None else ": leave out --rank"
        raise BadInputError(f"--from-scratch trains all weights{where}")
    return settings


def _convert(given: Tables, source: str | None) -> Settings:
    """Validate tables; ``source`` is their file, for messages."""
    document: dict[str, Any] = {table: given.get(table, {}) for table in ("model", "preprocessing", "data", "weights")}
    if isinstance(path := document["data"].get("path"), str | Path):
        document["data"] = document["data"] | {"path": [path]}
    defaults = FROM_SCRATCH if document["weights"].get("from_scratch") is True else {}
    parts = {name: given[name] for name in ("lora", "loss") if name in given}
    document["training"] = {**defaults, **given.get("training", {}), **parts}
    try:
        return msgspec.convert(document | {"given": given}, Settings, dec_hook=lambda kind, value: kind(value))
    except msgspec.ValidationError as error:
        reason, _, place = str(error).partition(" - at `$.")
        path = place.rstrip("`").partition("[")[0].split(".")
        if path[-1] in _TABLES:
            table = path[-1]
            reason += f"; known: {', '.join(_TABLES[table].__struct_fields__)}"
        else:
            table, name = path[-2:]
            value = reduce(getitem, path, document)
            choices = {"precision": Precision, "preset": Preset, "text_padding": get_args(Padding)}.get(name)
            reason = f"{name} is {value!r}: " + (f"choose one of {', '.join(choices)}" if choices else reason)
        raise BadInputError(reason if source is None else f"'{source}': [{table}] {reason}") from error


def _read_toml(name: str) -> Tables:
    recipes = Path(str(resources.files("rsrefseg"))) / "train" / "recipes"
    path = recipes / f"{name}.toml" if name in RECIPES else Path(name)
    if not path.is_file():
        raise BadInputError(f"settings '{name}' do not exist: give a TOML file, or one of {', '.join(RECIPES)}")
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # errors of TOML and UTF-8 are ValueErrors
        raise BadInputError(f"'{name}' is not a TOML file: {' '.join(str(error).split())[:120]}") from error
    if unknown := document.keys() - _TABLES:
        raise BadInputError(f"'{name}': unknown table [{min(unknown)}]; known: {', '.join(_TABLES)}")
    if no_tables := [table for table, values in document.items() if not isinstance(values, dict)]:
        raise BadInputError(f"'{name}': '{no_tables[0]}' must be a table: write [{no_tables[0]}] above its keys")
    return document


def _with_profile(preprocessing: Preprocessing) -> dict[str, Any]:
    return {"profile": preprocessing.profile, **preprocessing.to_dict()}


def _by_table(config: TrainConfig) -> Tables:
    values = config.to_dict()
    return {"training": values, "lora": values["lora"] or {}, "loss": values["loss"]}
