"""The float32 model behind a bundle, one stage at a time, and what half precision makes of it in PyTorch on the CPU."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.bundle.comparison import TensorError, tensor_error
from rsrefseg.engines.bundle.contracts import Stage, StageContract
from rsrefseg.engines.bundle.reference import ReferenceSample, load_reference
from rsrefseg.engines.bundle.tolerances import Scope, Verdict, judge, tolerances

if TYPE_CHECKING:
    from torch import nn

    from rsrefseg.runs.run import Run

    from .plan import Fp32Part, PrecisionPlan


@dataclass(frozen=True, slots=True)
class StageCheck:
    """One stage in half precision against its float32 reference: the worst output over all samples."""

    error: TensorError
    verdicts: tuple[Verdict, ...]

    @property
    def passed(self) -> bool:
        """Whether every limit holds."""
        return all(verdict.passed for verdict in self.verdicts)


@dataclass(frozen=True, slots=True)
class HalfStages:
    """A float32 model, one stage at a time, and what it made of the reference samples.

    Attributes:
        source: the model, in words.
        contracts: of its stages.
        samples: real inputs with every stage's float32 output.
        load: gives a stage, fresh, in float32 and eval mode.
        plan: blocks that stay float32 besides what always does.
    """

    source: str
    contracts: Mapping[Stage, StageContract]
    samples: Sequence[ReferenceSample]
    load: "Callable[[Stage], nn.Module]"
    plan: "PrecisionPlan"

    @classmethod
    def of_bundle(cls, bundle: Bundle, run: "Run") -> "HalfStages":
        """The model a bundle was exported from, on the bundle's samples, with the bundle's own plan.

        Raises:
            BadInputError: the run's merged model is damaged.
            BundleError: the bundle has no reference samples.
        """
        from rsrefseg.checkpoints.model_file import load_stage

        from .half_blocks import islands_of
        from .plan import Fp32Part, PrecisionPlan

        records = bundle.manifest.stages
        samples = load_reference(bundle)
        plan = PrecisionPlan()
        for stage, record in records.items():
            if record.precision_plan:
                blocks = {island.name for island in islands_of(stage, load_stage(run.merged_path, stage))}
                kept = [Fp32Part(part.module, part.reason) for part in record.precision_plan if part.module in blocks]
                plan = plan.with_blocks(stage, kept)
        return cls(
            source=f"run {run.path}",
            contracts={stage: record.contract for stage, record in records.items()},
            samples=samples,
            load=lambda stage: load_stage(run.merged_path, stage),
            plan=plan,
        )

    def blocks(self, stage: Stage) -> tuple[str, ...]:
        """The names of a stage's half blocks."""
        from .half_blocks import islands_of

        return tuple(island.name for island in islands_of(stage, self.load(stage)))

    def check(self, stage: Stage, kept: Collection["Fp32Part"]) -> StageCheck:
        """Run a stage in half precision, all blocks but ``kept``, and judge it as parity does."""
        from .half_blocks import make_half

        module = self.load(stage)
        make_half(stage, module, kept)
        return check_half_stage(module, self.contracts[stage], self.samples)


def check_half_stage(module: "nn.Module", contract: StageContract, samples: Sequence[ReferenceSample]) -> StageCheck:
    """Judge a half-precision module against what float32 PyTorch made of the samples."""
    from rsrefseg.model.stages import run_stage

    from .arithmetic import HalfArithmetic

    limits = tolerances("fp16", Scope.STAGE, contract.stage)
    errors = []
    for sample in samples:
        with HalfArithmetic():
            results = run_stage(module, contract, as_tensors(sample.inputs(contract)))
        errors += [
            tensor_error(wanted, results[name].float().numpy()) for name, wanted in sample.outputs(contract).items()
        ]
    worst = errors[0]
    for error in errors[1:]:
        worst = worst.worst(error)
    return StageCheck(worst, judge(worst.measures(), limits))


def as_tensors(arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, Any]:
    """Arrays as tensors."""
    import torch

    return {name: torch.tensor(array) for name, array in arrays.items()}
