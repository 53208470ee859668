"""What ``rsrefseg train`` was asked for: options, filled up from a file of settings, then from defaults."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from rsrefseg.engines.errors import BadInputError

from ..model.config import LoraSettings, ModelConfig
from ..runs.run import Run
from .config import LossWeights, Precision, TrainConfig, from_scratch_config
from .config_file import ConfigFile, read_config_file


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """The options of ``rsrefseg train``; None and a missing key stand for what was not given.

    ``settings``, ``lora`` and ``loss`` hold fields of ``TrainConfig`` and its parts.
    """

    data: Path | None = None
    images: Path | None = None
    config: str | None = None
    out: Path | None = None
    resume: bool = False
    preset: str | None = None
    text_padding: str | None = None
    dense_prompt: bool | None = None
    from_scratch: bool = False
    random_weights: bool = False
    base: Path | None = None
    sam: Path | None = None
    siglip: Path | None = None
    tokenizer: Path | None = None
    resize_masks: bool | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    lora: Mapping[str, Any] = field(default_factory=dict)
    loss: Mapping[str, Any] = field(default_factory=dict)

    def filled(self) -> "TrainRequest":
        """The same with the values of the file ``config`` where no option was given.

        Raises:
            BadInputError: the file cannot be used, or options name more than one base, or half of one.
        """
        given = {name: value for name, value in self.settings.items() if value is not None}
        request = dataclasses.replace(self, settings=given)
        request._check_base()
        if self.config is not None:
            request = request._over(read_config_file(self.config))
            request._check_base()
        return request

    def train_config(self) -> TrainConfig:
        """How to train it.

        Raises:
            BadInputError: a setting is out of range, or makes no sense from scratch.
        """
        settings = dict(self.settings)
        if "precision" in settings:
            settings["precision"] = _precision(settings["precision"])
        if self.loss:
            settings["loss"] = LossWeights(**self.loss)
        if self.from_scratch:
            if self.config is not None and self.lora:
                raise BadInputError(f"--from-scratch trains all weights, but '{self.config}' has a table [lora]")
            return from_scratch_config(**settings)
        return TrainConfig(lora=LoraSettings(**self.lora), **settings)

    def refuse_other_settings(self, run: Run, asked_model: ModelConfig) -> None:
        """Make sure that what was asked for is what a run to go on with was started with.

        Args:
            run: with its record.
            asked_model: what these options make of the preset.

        Raises:
            BadInputError: names the first setting that differs.
        """
        record = run.read_record()
        train, model = record["train"], record["model"]
        parts: list[tuple[Mapping[str, Any], Mapping[str, Any]]] = [
            (self.settings, train),
            (self.lora, train.get("lora") or {}),
            (self.loss, train.get("loss") or {}),
        ]
        asked = {"text_padding": self.text_padding, "dense_prompt": self.dense_prompt}
        parts.append(({name: value for name, value in asked.items() if value is not None}, model))
        if self.preset is not None:
            parts.append(({"preset": asked_model.preset}, model))
        defaults = TrainConfig().to_dict()  # of settings that are younger than the run
        for given, recorded in parts:
            for name, value in given.items():
                if (before := recorded.get(name, defaults.get(name))) != value:
                    before, value = (text.value if isinstance(text, StrEnum) else text for text in (before, value))
                    raise BadInputError(
                        f"'{run.path}' was started with {name} {before}, not {value}: leave it out to go on with it, "
                        "or give another --out"
                    )

    def _over(self, file: ConfigFile) -> "TrainRequest":
        """These options over a file's values."""
        weights = dict(file.weights)
        if self.from_scratch or self.random_weights or self.base is not None:
            weights = {name: value for name, value in weights.items() if name == "tokenizer"}
        elif self.sam is not None or self.siglip is not None:
            weights.pop("base", None)
        paths = {name: Path(value) for name, value in weights.items()}
        for key, name in (("path", "data"), ("images", "images")):
            if key in file.data:
                paths[name] = Path(file.data[key])
        values: dict[str, Any] = dict(file.model) | paths
        if "resize_masks" in file.data:
            values["resize_masks"] = file.data["resize_masks"]
        return dataclasses.replace(
            self,
            **{name: value for name, value in values.items() if getattr(self, name) is None},
            settings=dict(file.training) | dict(self.settings),
            lora=dict(file.lora) | dict(self.lora),
            loss=dict(file.loss) | dict(self.loss),
        )

    def _check_base(self) -> None:
        choices = {
            "--from-scratch": self.from_scratch,
            "--base": self.base is not None,
            "--sam and --siglip": self.sam is not None or self.siglip is not None,
            "--random-weights": self.random_weights,
        }
        if len(named := [name for name, given in choices.items() if given]) > 1:
            raise BadInputError(f"{' and '.join(named)} contradict each other: give one of them")


def _precision(name: str) -> Precision:
    if name not in tuple(Precision):
        raise BadInputError(f"unknown precision '{name}': choose one of {', '.join(Precision)}")
    return Precision(name)
