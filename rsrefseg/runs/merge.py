"""``merge``: a run's trained weights and its base become one plain model, with proof that nothing was lost."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rsrefseg.engines.errors import CheckFailedError
from rsrefseg.engines.records import Record
from rsrefseg.engines.system.tables import Table

from ..checkpoints.model_file import TensorFile, digest, load_tensors, save_model
from ..model.lora import fold_lora
from ..model.model import RSRefSeg
from ..model.stages import run_stages
from .base import BaseWeights
from .reference_inputs import load_reference_inputs
from .run import Run
from .tokenizer import open_tokenizer
from .trained import load_best

# Folding changes the order of float32 additions, nothing else: a few hundred roundings of 6e-8 deep in the towers.
TOLERANCE = 1e-4
# Stored in float16, every weight is rounded to 11 significant bits, and the towers add those roundings up.
HALF_TOLERANCE = 2e-2


class OutputDifference(Record, frozen=True):
    """How far folding moved one stage output: the largest absolute difference, also as a share of its abs maximum."""

    name: str
    max_abs: float
    relative: float


class MergeResult(Record, frozen=True):
    """A finished merge: where the model lies, what was folded and how far each output moved."""

    path: Path
    adapters: int
    differences: tuple[OutputDifference, ...]
    sha256: str

    def render(self) -> Any:
        """A table for a person."""
        columns = ("output", "max abs difference", "of its abs maximum")
        table = Table(f"{self.path}: {self.adapters} adapters folded", columns)
        for row in self.differences:
            table.add(row.name, f"{row.max_abs:.2e}", f"{row.relative:.2e}")
        return table.to_rich()


def merge(run: Run, *, half: bool = False) -> MergeResult:
    """Fold a run's best weights and write ``merged.safetensors`` beside them.

    All five stages run on the run's reference inputs with the adapters in place and again with the weights as they are
    stored; the differences go into the file's header.

    Args:
        run: a trained run.
        half: store float16 instead of float32: half the size, for shipping.

    Raises:
        BadInputError: the run is unfinished or damaged, or its base is gone or another.
        CheckFailedError: an output moved by more than ``TOLERANCE`` (``HALF_TOLERANCE``) of its absolute
            maximum; nothing is written.
    """
    model, tuner, best = load_best(run)
    base = BaseWeights.from_dict(run.read_record()["base"])
    tokenizer = open_tokenizer(run, model.config)
    inputs = [entry.tensors(tokenizer) for entry in load_reference_inputs(run.reference_inputs_path)]
    before = [run_stages(model, **tensors) for tensors in inputs]
    adapters = sum(name.endswith("lora_A.default.weight") for name, _ in model.named_parameters())
    merged = fold_lora(tuner).eval() if tuner is not None else model
    if half:
        _round_to_half(merged)
    after = [run_stages(merged, **tensors) for tensors in inputs]
    differences = compare_outputs(before, after)
    tolerance = HALF_TOLERANCE if half else TOLERANCE
    for difference in differences:
        if not difference.relative <= tolerance:
            raise CheckFailedError(
                f"merging moved '{difference.name}' by {difference.relative:.1e} of its maximum, more than "
                f"{tolerance:.0e}: nothing was written"
            )
    save_model(
        run.merged_path,
        merged,
        torch.float16 if half else None,
        merge={"adapters": adapters, "differences": [difference.to_dict() for difference in differences]},
        source={"run_best_sha256": digest(run.best_path), "base": base.to_dict(), "step": best.header["step"]},
        random_weights=base.random_weights,
    )
    return MergeResult(run.merged_path, adapters, differences, digest(run.merged_path))


def current_merge(run: Run) -> TensorFile | None:
    """The run's merged model; None where there is none, or training has gone on since.

    Raises:
        BadInputError: the file is damaged.
    """
    if not run.merged_path.exists():
        return None
    merged = load_tensors(run.merged_path)
    merged_from = merged.header.get("source", {}).get("run_best_sha256")
    return merged if not run.best_path.exists() or merged_from == digest(run.best_path) else None


def _round_to_half(model: RSRefSeg) -> None:
    """Give every stored tensor the value that float16 keeps of it."""
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor.half())


def compare_outputs(before: list[dict[str, Tensor]], after: list[dict[str, Tensor]]) -> tuple[OutputDifference, ...]:
    """Largest differences of each named output over all inputs; not-a-number counts as infinite."""
    differences = []
    for name in before[0]:
        pairs = [(left[name].double(), right[name].double()) for left, right in zip(before, after, strict=True)]
        worst = max(float((left - right).abs().max().nan_to_num(torch.inf)) for left, right in pairs)
        scale = max(float(left.abs().max()) for left, _ in pairs)
        differences.append(OutputDifference(name, worst, worst / scale if scale else worst))
    return tuple(differences)
