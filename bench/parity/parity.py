"""``rsrefseg parity``: an engine against FP32 PyTorch, by stage, along the chain, on final masks and on a data set."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.bundle.comparison import mask_iou, tensor_error
from rsrefseg.engines.bundle.contracts import Stage, StageContract
from rsrefseg.engines.bundle.reference import ReferenceSample, load_reference
from rsrefseg.engines.bundle.tolerances import COARSENESS, Scope, tie_share, tolerances
from rsrefseg.engines.engine import Arrays, Engine
from rsrefseg.engines.images.images import upsample_logits
from rsrefseg.engines.segmenter import Segmenter
from rsrefseg.engines.system.progress import ProgressLine

from .report import DataResult, MaskResult, MaskRow, ParityReport, TensorRow

if TYPE_CHECKING:
    from rsrefseg.evaluation.models import TorchModel

STAGE, CHAINED = "stage", "chained"
_CPU_PROVIDER = "CPUExecutionProvider"
_CPU_NOTE = (
    "ONNX Runtime's CPU computes half-precision nodes in float32, so that overflow inside a block does not show here: "
    "`rsrefseg parity --bisect` rounds as a GPU does"
)


def run_parity(
    bundle: Path | None, backend: str, data: Path | None = None, split: str = "test", run: Path | None = None
) -> ParityReport:
    """Compare a backend with FP32 PyTorch on a bundle.

    Args:
        bundle: the bundle; default is ``$RSREFSEG_BUNDLE`` or ``./bundle``.
        backend: one of ``Backend``.
        data: data set on which gIoU is compared as well; needs PyTorch and the run the bundle was exported from.
        split: its split.
        run: that run; default is the latest.

    Raises:
        BundleError: the bundle is not whole, or has no reference samples.
        BadInputError: the data set, or a run whose model is not the one in the bundle.
        MissingPartError: the backend cannot run here; with ``data``, PyTorch is not installed.
    """
    with Segmenter.open(bundle, backend, cached_phrases=0) as segmenter:
        opened, engine = segmenter.bundle, segmenter.engine
        samples = load_reference(opened)
        # Before the long part: whether the data set and the right weights are there.
        comparison = _DataComparison(engine, data, split, run) if data is not None else None
        with ProgressLine("parity on the reference samples") as progress:
            limits = tolerances(_precision(engine, Stage), Scope.MASKS)
            steps = 3 * len(samples)
            rows, masks = [], []
            for index, sample in enumerate(samples):
                rows.append(_stage_rows(engine, sample))
                progress.update(3 * index + 1, steps)
                rows.append(_chained_rows(engine, sample))
                progress.update(3 * index + 2, steps)
                masks += mask_rows(segmenter, index, sample, tie_share(limits))
                progress.update(3 * index + 3, steps)
        return ParityReport(
            bundle=str(opened.root),
            backend=engine.name,
            backend_reason=segmenter.backend_reason,
            providers={stage.value: engine.provider_of(stage) for stage in Stage},
            precision=_precision(engine, Stage),
            checkpoint_sha256=opened.manifest.provenance.checkpoint_sha256,
            tokens_equal=all(_tokens_equal(opened, sample) for sample in samples),
            tensors=_worst_rows(rows),
            masks=MaskResult.of(masks, limits),
            data=comparison.run(segmenter) if comparison is not None else None,
            notes=(*opened.manifest.provenance.notes, *_precision_notes(engine)),
        )


def _stage_rows(engine: Engine, sample: ReferenceSample) -> list[TensorRow]:
    """Each stage on PyTorch's own inputs."""
    rows = []
    for contract in _contracts(engine.bundle):
        results = engine.run(contract.stage, sample.inputs(contract))
        rows += _rows(STAGE, engine, contract, sample, results, (contract.stage,))
    return rows


def _chained_rows(engine: Engine, sample: ReferenceSample) -> list[TensorRow]:
    """Each stage on the engine's own previous outputs; those that only take what comes from outside stand above."""
    tensors: Arrays = {name: sample.tensors[name] for name in ("image", "input_ids", "token_mask")}
    makers: dict[str, tuple[Stage, ...]] = {}
    rows = []
    for contract in _contracts(engine.bundle):
        behind = tuple(stage for spec in contract.inputs for stage in makers.get(spec.name, ()))
        results = engine.run(contract.stage, {spec.name: tensors[spec.name] for spec in contract.inputs})
        tensors |= results
        makers |= dict.fromkeys(results, (*behind, contract.stage))
        if behind:
            rows += _rows(CHAINED, engine, contract, sample, results, (*behind, contract.stage))
    return rows


def _rows(
    check: str,
    engine: Engine,
    contract: StageContract,
    sample: ReferenceSample,
    results: Arrays,
    stages: Sequence[Stage],
) -> list[TensorRow]:
    """One row per output; judged by the coarsest precision of the stages that had a part in it."""
    limits = tolerances(_precision(engine, stages), Scope.STAGE, contract.stage)
    return [
        TensorRow(check, contract.stage, name, tensor_error(wanted, results[name]), limits)
        for name, wanted in sample.outputs(contract).items()
    ]


def _worst_rows(rows: Sequence[Sequence[TensorRow]]) -> tuple[TensorRow, ...]:
    """One row for each check and output: the worst over all samples."""
    worst: dict[tuple[str, str], TensorRow] = {}
    for row in (row for part in rows for row in part):
        key = (row.check, row.output)
        worst[key] = replace(row, error=row.error.worst(worst[key].error)) if key in worst else row
    return tuple(sorted(worst.values(), key=lambda row: (row.check == CHAINED, list(Stage).index(row.stage))))


def mask_rows(segmenter: Segmenter, index: int, sample: ReferenceSample, share: float) -> list[MaskRow]:
    """The whole way from pixels and words to masks, one phrase at a time as a user asks.

    Args:
        segmenter: to be compared.
        index: of the sample.
        sample: what PyTorch answered.
        share: see ``tie_share``.
    """
    height, width = sample.original_size
    pixels = np.ascontiguousarray(sample.tensors["image"][0].transpose(1, 2, 0))
    # The stored image is already stretched to the network's size, where stretching changes nothing.
    encoded = replace(segmenter.encode_image(pixels), height=height, width=width)
    image_size = segmenter.bundle.manifest.geometry.image_size
    rows = []
    for phrase, logits, mask in zip(sample.phrases, sample.tensors["mask_logits"][:, 0], sample.masks, strict=True):
        answer = segmenter.segment(encoded, [phrase])[0]
        ties = np.abs(upsample_logits(logits, image_size, sample.original_size)) <= share * np.abs(logits).max()
        flipped = answer.mask != mask
        rows.append(
            MaskRow(
                sample=index,
                phrase=phrase,
                iou=mask_iou(answer.mask, mask),
                logits=tensor_error(logits, answer.mask_logits),
                flipped_pixels=int(np.count_nonzero(flipped)),
                flipped_ties=int(np.count_nonzero(flipped & ties)),
                pixels=mask.size,
            )
        )
    return rows


def _tokens_equal(bundle: Bundle, sample: ReferenceSample) -> bool:
    """Whether the bundle's tokenizer reads the phrases as training did."""
    tokens = bundle.tokenizer().encode(sample.phrases)
    same_ids = np.array_equal(tokens.input_ids, sample.tensors["input_ids"])
    return same_ids and np.array_equal(tokens.token_mask, sample.tensors["token_mask"])


def _contracts(bundle: Bundle) -> list[StageContract]:
    return [bundle.manifest.stages[stage].contract for stage in Stage]


def _precision(engine: Engine, stages: Sequence[Stage] | type[Stage]) -> str:
    """The coarsest precision that the engine computes some stages in."""
    return max((engine.precision_of(stage) for stage in stages), key=COARSENESS.index)


def _precision_notes(engine: Engine) -> tuple[str, ...]:
    """What a runtime cannot show about half precision."""
    stages = engine.bundle.manifest.stages
    on_cpu = any(
        record.precision == "fp16" and engine.provider_of(stage) == _CPU_PROVIDER for stage, record in stages.items()
    )
    return (_CPU_NOTE,) if on_cpu else ()


class _DataComparison:
    """The same samples answered by PyTorch and by an engine. Everything is found at construction, before any work."""

    def __init__(self, engine: Engine, data: Path, split: str, run: Path | None) -> None:
        from rsrefseg.evaluation.models import merged_model
        from rsrefseg.runs.run import exported_run

        self.torch: TorchModel = merged_model(
            exported_run(engine.bundle.root, engine.bundle.manifest.provenance.checkpoint_sha256, run)
        )
        from rsrefseg.data.loading import verify_images
        from rsrefseg.data.samples import open_dataset

        dataset = open_dataset(data)
        self.samples = dataset.split(split)
        verify_images(dataset, [split])
        self.data, self.split = data, split
        self.limits = tolerances(_precision(engine, Stage), Scope.DATA)

    def run(self, segmenter: Segmenter) -> DataResult:
        """Answer all samples twice."""
        from rsrefseg.evaluation.answers import answer_samples
        from rsrefseg.evaluation.evaluate import asker
        from rsrefseg.evaluation.metrics import ReferringMetrics

        # Both sides meet the same truth, so a mask of another size than its image spoils nothing: it is resized.
        by_torch, by_engine = ReferringMetrics(), ReferringMetrics()
        agreement: list[float] = []
        flipped = 0
        with ProgressLine(f"parity on {self.data}") as progress:
            pairs = zip(
                answer_samples(asker(self.torch.model, self.torch.tokenizer), self.samples, on_size_mismatch="resize"),
                answer_samples(segmenter.segment, self.samples, on_size_mismatch="resize", progress=progress.update),
                strict=True,
            )
            for wanted, found in pairs:
                by_torch.update(wanted.prediction, wanted.truth)
                by_engine.update(found.prediction, found.truth)
                agreement.append(mask_iou(wanted.prediction, found.prediction))
                flipped += int(np.count_nonzero(wanted.prediction != found.prediction))
        return DataResult.of(
            data=f"{self.data}, split {self.split}",
            torch_giou=by_torch.result().gIoU,
            engine_giou=by_engine.result().gIoU,
            agreement=agreement,
            flipped_pixels=flipped,
            limits=self.limits,
        )
