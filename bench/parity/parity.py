"""``rsrefseg parity``: compares an engine with FP32 PyTorch by stage, chained, on masks and on a data set."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.bundle.comparison import TensorError, mask_iou, tensor_error
from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.engines.bundle.reference import ReferenceSample, load_reference
from rsrefseg.engines.bundle.tolerances import COARSENESS, Measure, Scope, tie_share, tolerances
from rsrefseg.engines.engine import Arrays, Engine
from rsrefseg.engines.images.images import upsample_logits
from rsrefseg.engines.segmenter import Segmenter
from rsrefseg.engines.system.progress import ProgressLine

from .report import CHAINED, STAGE, DataResult, MaskResult, MaskRow, ParityReport, TensorRow

if TYPE_CHECKING:
    from rsrefseg.data.samples import Sample
    from rsrefseg.evaluation.models import TorchModel

_CPU_PROVIDER = "CPUExecutionProvider"
_CPU_NOTE = (
    "ONNX Runtime's CPU computes half-precision nodes in float32, which hides overflow inside a block: "
    "`rsrefseg parity --bisect` rounds as a GPU does"
)


def run_parity(
    bundle: Path | None, backend: str, data: Path | None = None, split: str = "test", run: Path | None = None
) -> ParityReport:
    """Compare a backend with FP32 PyTorch on a bundle.

    Args:
        bundle: the bundle; default is ``$RSREFSEG_BUNDLE`` or ``./bundle``.
        backend: one of ``Backend``.
        data: data set for a comparison of gIoU; needs PyTorch and the run the bundle was exported from.
        split: split of the data set.
        run: run folder; default is the latest run.

    Raises:
        BundleError: the bundle is incomplete or damaged, or has no reference samples.
        BadInputError: the data set cannot be used, or the model of the run is not the one in the bundle.
        MissingPartError: the backend cannot run here; with ``data``, PyTorch is not installed.
    """
    with Segmenter.open(bundle, backend, cached_phrases=0) as segmenter:
        opened, engine = segmenter.bundle, segmenter.engine
        samples = load_reference(opened)
        # Opened before the comparison, because the data set or the run may be wrong.
        torch_and_samples = _open_data(opened, data, split, run) if data is not None else None
        precision = _precision(engine, Stage)
        limits = tolerances(precision, Scope.MASKS)
        errors: dict[tuple[str, Stage, str], TensorError] = {}
        masks: list[MaskRow] = []
        with ProgressLine("parity on the reference samples") as progress:
            for index, sample in enumerate(samples):
                for key, error in _tensor_errors(engine, sample):
                    errors[key] = error.worst(errors[key]) if key in errors else error
                masks += mask_rows(segmenter, index, sample, tie_share(limits))
                progress.update(index + 1, len(samples))
        manifest = opened.manifest
        half = [stage for stage, record in manifest.stages.items() if record.precision == "fp16"]
        on_cpu = any(engine.provider_of(stage) == _CPU_PROVIDER for stage in half)
        return ParityReport(
            bundle=str(opened.root),
            backend=engine.name,
            backend_reason=segmenter.backend_reason,
            providers={stage.value: engine.provider_of(stage) for stage in Stage},
            precision=precision,
            checkpoint_sha256=manifest.provenance.checkpoint_sha256,
            tokens_equal=all(_tokens_equal(opened, sample) for sample in samples),
            tensors=_tensor_rows(engine, errors),
            masks=MaskResult.of(masks, limits),
            data=_compare_data(segmenter, *torch_and_samples, f"{data}, split {split}") if torch_and_samples else None,
            notes=(*manifest.notes, *([_CPU_NOTE] if on_cpu else [])),
        )


def _tensor_errors(engine: Engine, sample: ReferenceSample) -> Iterator[tuple[tuple[str, Stage, str], TensorError]]:
    """Yield errors by check, stage and output, for single stages on PyTorch's inputs and for the chain."""
    chained: Arrays = {name: sample.tensors[name] for name in ("image", "input_ids", "token_mask")}
    for stage in Stage:
        contract = engine.bundle.manifest.stages[stage].contract
        alone = engine.run(stage, sample.inputs(contract))
        yield from _errors(STAGE, stage, sample.outputs(contract), alone)
        if not _before(engine.bundle, stage):  # no inputs from other stages: both runs are equal
            chained |= alone
            continue
        found = engine.run(stage, {spec.name: chained[spec.name] for spec in contract.inputs})
        yield from _errors(CHAINED, stage, sample.outputs(contract), found)
        chained |= found


def _errors(
    check: str, stage: Stage, wanted: Arrays, found: Arrays
) -> Iterator[tuple[tuple[str, Stage, str], TensorError]]:
    for name, array in wanted.items():
        yield (check, stage, name), tensor_error(array, found[name])


def _before(bundle: Bundle, stage: Stage) -> set[Stage]:
    """Return the stages that a stage depends on, directly or indirectly."""
    contracts = {other: record.contract for other, record in bundle.manifest.stages.items()}
    taken = {spec.name for spec in contracts[stage].inputs}
    direct = {other for other in Stage if taken & {spec.name for spec in contracts[other].outputs}}
    return direct.union(*(_before(bundle, other) for other in direct))


def _tensor_rows(engine: Engine, errors: dict[tuple[str, Stage, str], TensorError]) -> tuple[TensorRow, ...]:
    """Judge by the coarsest precision of the stages involved; chained rows are last."""
    rows = []
    for (check, stage, output), error in errors.items():
        involved = {stage} | (_before(engine.bundle, stage) if check == CHAINED else set())
        limits = tolerances(_precision(engine, involved), Scope.STAGE)
        row = TensorRow.judge(
            error.measures(),
            limits,
            check=check,
            stage=stage,
            output=output,
            max_abs_error=error.max_abs,
            share_of_max=error.share_of_max,
            relative_l2=error.relative_l2,
            cosine=error.cosine,
        )
        rows.append(row)
    return tuple(sorted(rows, key=lambda row: row.check == CHAINED))


def mask_rows(segmenter: Segmenter, index: int, sample: ReferenceSample, tie_share: float) -> list[MaskRow]:
    """Compare masks end to end, from pixels and phrases, one phrase at a time.

    Args:
        segmenter: segmenter to compare.
        index: index of the sample.
        sample: reference sample with PyTorch's predictions.
        tie_share: see ``tolerances.tie_share``.
    """
    height, width = sample.original_size
    pixels = np.ascontiguousarray(sample.tensors["image"][0].transpose(1, 2, 0))
    # The stored image has the network's size.
    encoded = replace(segmenter.encode_image(pixels), height=height, width=width)
    preprocessing = segmenter.bundle.manifest.preprocessing
    rows = []
    for phrase, logits, mask in zip(sample.phrases, sample.tensors["mask_logits"][:, 0], sample.masks, strict=True):
        prediction = segmenter.segment(encoded, [phrase])[0]
        full = upsample_logits(
            logits, preprocessing.image_size, sample.original_size, keep_aspect=preprocessing.keep_aspect
        )
        ties = np.abs(full) <= tie_share * np.abs(logits).max()
        found = prediction.mask
        flipped = found != mask
        error = tensor_error(logits, prediction.mask_logits)
        rows.append(
            MaskRow(
                sample=index,
                phrase=phrase,
                iou=mask_iou(found, mask),
                max_logit_error=error.max_abs,
                share_of_max=error.share_of_max,
                flipped_pixels=int(np.count_nonzero(flipped)),
                flipped_ties=int(np.count_nonzero(flipped & ties)),
                pixels=mask.size,
            )
        )
    return rows


def _tokens_equal(bundle: Bundle, sample: ReferenceSample) -> bool:
    """Return whether the bundle's tokenizer encodes the phrases as in training."""
    tokens = bundle.tokenizer().encode(sample.phrases)
    same_ids = np.array_equal(tokens.input_ids, sample.tensors["input_ids"])
    return same_ids and np.array_equal(tokens.token_mask, sample.tensors["token_mask"])


def _precision(engine: Engine, stages: Iterable[Stage]) -> str:
    """Return the coarsest precision in which the engine computes some stages."""
    return max((engine.precision_of(stage) for stage in stages), key=COARSENESS.index)


def _open_data(bundle: Bundle, data: Path, split: str, run: Path | None) -> "tuple[TorchModel, tuple[Sample, ...]]":
    """Open the model that the bundle was exported from, and the checked samples of a split."""
    from rsrefseg.checkpoints.model_file import load_tensors
    from rsrefseg.data.formats import open_dataset
    from rsrefseg.data.verify import verify_samples
    from rsrefseg.evaluation.models import file_model
    from rsrefseg.runs.run import exported_run

    exported = exported_run(bundle.root, bundle.manifest.provenance.checkpoint_sha256, run)
    torch = file_model(load_tensors(exported.merged_path), f"run {exported.path}, merged")
    (samples,) = verify_samples(open_dataset(data), [split], resize_masks=True)
    return torch, samples


def _compare_data(segmenter: Segmenter, torch: "TorchModel", samples: "tuple[Sample, ...]", data: str) -> DataResult:
    """Compare PyTorch and the engine on all samples."""
    from rsrefseg.evaluation.evaluate import predict_with
    from rsrefseg.evaluation.metrics import ReferringMetrics
    from rsrefseg.evaluation.predictions import predict_samples

    by_torch, by_engine = ReferringMetrics(), ReferringMetrics()
    ious: list[float] = []
    flipped = 0
    with ProgressLine(f"parity on {data}") as progress:
        # Masks of another size than their image may be resized: they are the same for both.
        references = predict_samples(predict_with(torch.model, torch.tokenizer), samples, resize_masks=True)
        predictions = predict_samples(segmenter.segment, samples, resize_masks=True, progress=progress.update)
        for wanted, found in zip(references, predictions, strict=True):
            by_torch.update(wanted.mask, wanted.truth)
            by_engine.update(found.mask, found.truth)
            ious.append(mask_iou(wanted.mask, found.mask))
            flipped += int(np.count_nonzero(wanted.mask != found.mask))
    limits = tolerances(_precision(segmenter.engine, Stage), Scope.DATA)
    giou_torch, giou_engine = by_torch.result().gIoU, by_engine.result().gIoU
    difference = giou_engine - giou_torch
    return DataResult.judge(
        {Measure.GIOU_DIFFERENCE: abs(difference)},
        limits,
        data=data,
        samples=len(ious),
        giou_torch=giou_torch,
        giou_engine=giou_engine,
        giou_difference=difference,
        iou_worst=min(ious),
        iou_mean=sum(ious) / len(ious),
        flipped_pixels=flipped,
    )
