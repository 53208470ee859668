"""Models with adapters, their trained state, and the best weights of a run."""

from pathlib import Path

import msgspec
import torch
from peft import LoraModel
from torch import Tensor, nn

from rsrefseg.engines.errors import BadInputError

from ..checkpoints.key_matching import match_own
from ..checkpoints.model_file import TensorFile, load_tensors
from ..model.config import LoraSettings, ModelConfig
from ..model.lora import add_lora, train_everything
from ..model.model import RSRefSeg
from .base import BaseWeights
from .run import Run


class _Adapters(msgspec.Struct):
    """Training settings that determine the structure of a model."""

    lora: LoraSettings | None
    seed: int


def prepare_model(
    base: BaseWeights, config: ModelConfig, lora: LoraSettings | None, seed: int
) -> tuple[RSRefSeg, LoraModel | None]:
    """Build the model to train and set ``requires_grad``; ``seed`` determines every random weight.

    Returns:
        The model, and peft's wrapper of it if ``lora`` is given.
    """
    model = base.build(config, seed)
    if lora is None:
        train_everything(model)
        return model, None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model, add_lora(model, lora)


def load_best(run: Run) -> tuple[RSRefSeg, LoraModel | None, TensorFile]:
    """Load a run's model with its best weights and unmerged adapters, in eval mode.

    Returns:
        The model, peft's wrapper of it if it has adapters, and the file of the best weights.

    Raises:
        BadInputError: the run is unfinished or damaged, or its base is missing or differs.
    """
    record = run.read_record()
    base, config = BaseWeights.from_dict(record["base"]), ModelConfig.from_dict(record["model"])
    if not run.best_path.exists():
        if run.merged_path.exists():
            raise BadInputError(f"'{run.path}' was not trained by rsrefseg and is already merged: export it directly")
        raise BadInputError(f"'{run.path}' has no trained weights yet: continue with `rsrefseg train --resume`")
    try:
        adapters = msgspec.convert(record["train"], _Adapters)
    except msgspec.ValidationError as error:
        raise BadInputError(f"'{run.record_path}' has invalid training settings: {error}") from error
    model, tuner = prepare_model(base, config, adapters.lora, adapters.seed)
    best = load_tensors(run.best_path)
    load_trained_state(model, best.tensors, run.best_path)
    return model.eval(), tuner, best


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors that training changes, by name: trained parameters and batch-norm statistics."""
    trained: dict[str, Tensor] = {
        name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    statistics = {
        f"{module_name}.{name}": buffer
        for module_name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        for name, buffer in module.named_buffers(recurse=False)
    }
    return trained | statistics


def load_trained_state(model: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Copy a ``trained_state`` into a model; ``path`` is its file, for messages.

    Raises:
        BadInputError: names or shapes differ from the model's.
    """
    target = trained_state(model)
    for pair in match_own(target, tensors, path).pairs:
        target[pair.name].copy_(pair.tensor)
