"""The float32 model behind a bundle, one stage at a time, and its stages in half precision in PyTorch on the CPU."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import torch
from torch import Tensor, nn

from rsrefseg.checkpoints.model_file import load_stage
from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.bundle.comparison import TensorError, tensor_error
from rsrefseg.engines.bundle.contracts import Stage, StageContract
from rsrefseg.engines.bundle.reference import ReferenceSample, load_reference
from rsrefseg.engines.bundle.tolerances import Scope, judge, tolerances
from rsrefseg.engines.system.progress import ProgressLine
from rsrefseg.model.stages import run_stage
from rsrefseg.runs.run import exported_run

from .arithmetic import HalfArithmetic
from .half_blocks import convert_to_half
from .plan import ALWAYS_FP32, PrecisionPlan


@dataclass(frozen=True, slots=True)
class StageCheck:
    """One stage in half precision against its float32 reference: its worst output, and whether all limits hold."""

    error: TensorError
    passed: bool


@dataclass(frozen=True, slots=True)
class HalfModel:
    """A float32 model to try in half precision.

    Attributes:
        run: folder of its run.
        contracts: of its stages.
        samples: real inputs with every stage's float32 output.
        load: returns a new copy of a stage, float32, in eval mode.
        plan: blocks that stay float32.
    """

    run: Path
    contracts: Mapping[Stage, StageContract]
    samples: Sequence[ReferenceSample]
    load: Callable[[Stage], nn.Module]
    plan: PrecisionPlan

    def stages(self, task: str) -> Iterator[Stage]:
        """The stages one after the other, with a progress line."""
        with ProgressLine(task) as progress:
            for done, stage in enumerate(self.contracts, start=1):
                yield stage
                progress.update(done, len(self.contracts))

    def inputs(self, stage: Stage) -> list[dict[str, Tensor]]:
        """A stage's inputs in every sample, by contract name."""
        contract = self.contracts[stage]
        return [
            {name: torch.tensor(array) for name, array in sample.inputs(contract).items()} for sample in self.samples
        ]

    def check(self, stage: Stage, fp32_blocks: Mapping[str, str]) -> StageCheck:
        """Run a stage in half precision, except for some blocks, and judge its outputs as parity does."""
        module = self.load(stage)
        convert_to_half(stage, module, fp32_blocks)
        return self.check_module(stage, module)

    def check_module(self, stage: Stage, module: nn.Module) -> StageCheck:
        """Judge a half-precision stage against the float32 outputs of the samples."""
        contract = self.contracts[stage]
        errors = []
        for sample, inputs in zip(self.samples, self.inputs(stage), strict=True):
            with HalfArithmetic():
                found = run_stage(module, contract, inputs)
            wanted = sample.outputs(contract)
            errors += [tensor_error(array, found[name].float().numpy()) for name, array in wanted.items()]
        worst = reduce(TensorError.worst, errors)
        verdicts = judge(worst.measures(), tolerances("fp16", Scope.STAGE))
        return StageCheck(worst, all(verdict.passed for verdict in verdicts))


def open_half_model(bundle: Path | None, run_path: Path | None) -> HalfModel:
    """The model a bundle was exported from, on the bundle's samples, with the bundle's plan.

    Args:
        bundle: the bundle, of either precision; ``$RSREFSEG_BUNDLE`` or ``./bundle`` by default.
        run_path: the run it was exported from; the latest by default.

    Raises:
        BundleError: the bundle is not whole, or has no reference samples.
        BadInputError: the run's model is not the one in the bundle, or damaged.
    """
    opened = Bundle.open(bundle)
    run = exported_run(opened.root, opened.manifest.provenance.checkpoint_sha256, run_path)
    records = opened.manifest.stages
    plan = {
        stage: {part.module: part.reason for part in record.precision_plan if part.module not in ALWAYS_FP32[stage]}
        for stage, record in records.items()
    }
    return HalfModel(
        run=run.path,
        contracts={stage: record.contract for stage, record in records.items()},
        samples=load_reference(opened),
        load=lambda stage: load_stage(run.merged_path, stage),
        plan=plan,
    )
