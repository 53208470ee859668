"""The float32 model behind a bundle, loaded stage by stage, and its stages in half precision on the CPU (PyTorch)."""

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
from .plan import ALWAYS_FP32, ALWAYS_FP32_RSREFSEG2, PrecisionPlan


@dataclass(frozen=True, slots=True)
class StageCheck:
    """The error of a stage's worst output in half precision against float32, and whether it is within all limits."""

    error: TensorError
    passed: bool


@dataclass(frozen=True, slots=True)
class HalfModel:
    """A float32 model to test in half precision.

    Attributes:
        run: folder of the model's run.
        contracts: contracts of its stages.
        samples: real inputs with the float32 outputs of every stage.
        load: function that returns a new copy of a stage, float32, in eval mode.
        plan: blocks that stay float32, with reasons.
    """

    run: Path
    contracts: Mapping[Stage, StageContract]
    samples: Sequence[ReferenceSample]
    load: Callable[[Stage], nn.Module]
    plan: PrecisionPlan

    def stages(self, task: str) -> Iterator[Stage]:
        """Yield the stages and show progress."""
        with ProgressLine(task) as progress:
            for done, stage in enumerate(self.contracts, start=1):
                yield stage
                progress.update(done, len(self.contracts))

    def inputs(self, stage: Stage) -> list[dict[str, Tensor]]:
        """Return the inputs of a stage for every sample, by contract name."""
        contract = self.contracts[stage]
        return [
            {name: torch.tensor(array) for name, array in sample.inputs(contract).items()} for sample in self.samples
        ]

    def check(self, stage: Stage, fp32_blocks: Mapping[str, str]) -> StageCheck:
        """Run a stage in half precision, except for some blocks, and check its outputs by the limits of parity."""
        module = self.load(stage)
        convert_to_half(stage, module, fp32_blocks)
        return self.check_module(stage, module)

    def check_module(self, stage: Stage, module: nn.Module) -> StageCheck:
        """Check a half-precision stage against the float32 outputs of the samples."""
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
    """Open the model that a bundle was exported from, with the samples and the plan of the bundle.

    Args:
        bundle: folder of the bundle, of either precision; by default ``$RSREFSEG_BUNDLE`` or ``./bundle``.
        run_path: the run that the bundle was exported from; by default the latest.

    Raises:
        BundleError: the bundle is incomplete, or has no reference samples.
        BadInputError: the model of the run is damaged, or is not the one in the bundle.
    """
    opened = Bundle.open(bundle)
    run = exported_run(opened.root, opened.manifest.provenance.checkpoint_sha256, run_path)
    records = opened.manifest.stages
    always = {stage: {*ALWAYS_FP32[stage], *ALWAYS_FP32_RSREFSEG2.get(stage, ())} for stage in records}
    plan = {
        stage: {part.module: part.reason for part in record.precision_plan if part.module not in always[stage]}
        for stage, record in records.items()
    }
    return HalfModel(
        run=run.path,
        contracts={stage: record.contract for stage, record in records.items()},
        samples=load_reference(opened),
        load=lambda stage: load_stage(run.merged_path, stage),
        plan=plan,
    )
