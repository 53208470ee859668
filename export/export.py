"""``rsrefseg export``: write the merged model of a run as a bundle, atomically."""

import gc
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group
from torch import Tensor, nn

from rsrefseg.checkpoints.model_file import TensorFile, config_of, digest, load_stage, load_tensors
from rsrefseg.engines.bundle.bundle import REFERENCE_NAME, TOKENIZER_NAME, Bundle, default_bundle_path, file_record
from rsrefseg.engines.bundle.contracts import Stage, StageContract, stage_contracts
from rsrefseg.engines.bundle.manifest import (
    MANIFEST_NAME,
    AttentionRecord,
    KeptFp32,
    Manifest,
    MaskJudgement,
    Preprocessing,
    Provenance,
    Quantization,
    StageRecord,
    TextPolicy,
)
from rsrefseg.engines.bundle.reference import ReferenceSample, write_reference
from rsrefseg.engines.errors import BadInputError
from rsrefseg.engines.images.images import upsample_logits
from rsrefseg.engines.records import Record
from rsrefseg.engines.system.files import atomic_directory, recover_directory
from rsrefseg.engines.system.progress import ProgressLine
from rsrefseg.engines.system.tables import Table
from rsrefseg.evaluation.presence import presence_of
from rsrefseg.inference.attention import AttentionChoice, AttentionForm
from rsrefseg.inference.stages import fold_for_inference
from rsrefseg.model.config import Preset, model_config
from rsrefseg.model.model import geometry
from rsrefseg.model.stages import run_stage
from rsrefseg.runs.imported_run import make_base_run, make_random_run
from rsrefseg.runs.merge import current_merge, merge
from rsrefseg.runs.reference_inputs import ReferenceInput, load_reference_inputs
from rsrefseg.runs.run import Run, latest_run, next_run, versions
from rsrefseg.runs.tokenizer import open_tokenizer

from .checks import check_graph
from .costs import count_flops, count_weights
from .graph import export_graph
from .precision.half_blocks import convert_to_half
from .quantization.judge import choose_samples
from .quantization.quantize import quantize_bundle
from .settings import ExportSettings

# Graphs contain the merged file's weights, some in another shape; reference samples take 16 MiB per image at -l.
_FREE_SPACE_FACTOR = 1.2
_FREE_SPACE_BYTES = 64 << 20
DEFAULT_SETTINGS = ExportSettings()


class ExportReport(Record, frozen=True):
    """The report of an export: per stage, parameters, GFLOP for one image and phrase, and bytes on disk; and notes.

    ``quantization`` has the stages that are quantised, ``judgement`` the comparison of their masks with the original's.
    """

    bundle: str
    run: str
    stages: Mapping[str, Mapping[str, float]]
    size_bytes: int
    notes: tuple[str, ...]
    quantization: Mapping[Stage, Quantization]
    judgement: MaskJudgement | None

    def render(self) -> Any:
        """Return a table for the terminal."""
        title = f"{self.run} -> {self.bundle}  ({self.size_bytes / 2**20:.1f} MiB)"
        table = Table(title, ("stage", "parameters", "GFLOP", "MiB"))
        for name, row in self.stages.items():
            table.add(name, f"{row['parameters']:,}", f"{row['gflop']:.3f}", f"{row['size_bytes'] / 2**20:.2f}")
        quantized = Table("quantised", ("stage", "layers", "kept in floating point", "largest rel. L2"))
        for stage, found in self.quantization.items():
            error = "" if found.relative_l2 is None else f"{found.relative_l2:.1e}"
            quantized.add(stage, str(found.layers), str(len(found.kept)), error)
        judged = [f"masks: {self.judgement}"] if self.judgement is not None else []
        tables = [table.to_rich(), *([quantized.to_rich()] if self.quantization else [])]
        return Group(*tables, *judged, *(f"note: {note}" for note in self.notes))


def export_run(
    run_path: Path | None,
    out: Path | None,
    settings: ExportSettings = DEFAULT_SETTINGS,
    preset: str | None = None,
    base: bool = False,
) -> ExportReport:
    """Export a run, after merging it unless it was merged since its last training.

    Args:
        run_path: folder of the run; by default the latest under ``./runs``.
        out: folder of the bundle; by default ``$RSREFSEG_BUNDLE`` or ``./bundle``.
        settings: precision, target, attention and operator set.
        preset: first create a run with random weights of this preset, at ``run_path`` or the next free folder under
            ``./runs``. Its sizes and times equal those of a trained model; its masks are meaningless.
        base: first create a run with the shipped tiny base, at the same place.

    Raises:
        BadInputError: the run or preset does not exist, both ``preset`` and ``base`` are given, ``out`` contains
            something else than a bundle, the settings name a part that the model lacks, or the data set of
            ``settings.quantization`` cannot be used.
        CheckFailedError: the merge or a graph failed its check; nothing is written.
        RSRefSegError: the disk is nearly full or the folder cannot be written.
    """
    destination = out or default_bundle_path()
    check_destination(destination)
    if base and preset is not None:
        raise BadInputError("--base and --random-weights contradict each other: give one of them")
    quantization = settings.quantization
    samples = choose_samples(quantization) if quantization is not None and quantization.data is not None else None
    if base:
        settings.resolve(model_config(Preset.TINY))
        run = make_base_run(run_path or next_run())
    elif preset is not None:
        config = model_config(preset)
        settings.resolve(config)
        run = make_random_run(run_path or next_run(), config)
    else:
        run = Run(run_path) if run_path else latest_run()
    merged = current_merge(run)
    if merged is None:
        merge(run)
        merged = load_tensors(run.merged_path)
    settings.resolve(config_of(merged))
    _check_free_space(destination, merged.path, 1 if quantization is None else 2)
    with ProgressLine(f"exporting {destination}") as progress, atomic_directory(destination, MANIFEST_NAME) as folder:
        original = folder if quantization is None else folder / "original"
        original.mkdir(exist_ok=True)
        manifest = _write_bundle(original, run, merged, settings, progress.update)
        if quantization is not None:
            manifest = quantize_bundle(Bundle(original, manifest), folder, quantization, samples, progress.say)
            shutil.rmtree(original)
            Bundle.write_manifest(folder, manifest)
        if manifest.presence is None and run.presence_path.exists():
            progress.say(f"'{run.presence_path}' is of an earlier model and left out: run `rsrefseg calibrate` again")
    return ExportReport(
        bundle=str(destination),
        run=str(run.path),
        stages={
            stage.value: {
                "parameters": record.parameters,
                "gflop": record.flops / 1e9,
                "size_bytes": sum(file.size_bytes for file in (record.graph, *record.data)),
            }
            for stage, record in manifest.stages.items()
        },
        size_bytes=sum(file.size_bytes for file in manifest.files),
        notes=(*settings.notes, *manifest.notes),
        quantization={
            stage: record.quantization for stage, record in manifest.stages.items() if record.quantization is not None
        },
        judgement=manifest.judgement,
    )


def check_destination(path: Path) -> None:
    """Check that a path can hold a new bundle: it is free, an empty folder or a bundle.

    Raises:
        BadInputError: ``path`` is a file, or a folder with other contents.
    """
    if str(path).startswith("hf:/"):
        raise BadInputError(f"'{path}' is an address on the hub: give a folder with --out, then `rsrefseg push` it")
    recover_directory(path)
    if path.is_dir() and ((path / MANIFEST_NAME).is_file() or not any(path.iterdir())):
        return
    if path.exists():
        raise BadInputError(f"'{path}' exists and is not a bundle: choose another place with --out")


def _write_bundle(
    folder: Path, run: Run, merged: TensorFile, settings: ExportSettings, progress: Callable[[int, int], None]
) -> Manifest:
    """Write all files of a bundle into ``folder``, ``bundle.json`` last. Memory holds one stage at a time."""
    config = config_of(merged)
    contracts = stage_contracts(geometry(config))
    tokenizer = open_tokenizer(run, config)
    entries = load_reference_inputs(run.reference_inputs_path)
    keep_aspect = config.preprocessing.keep_aspect
    references = [(entry, entry.tensors(tokenizer)) for entry in entries]
    attention = settings.resolve(config)
    stages: dict[Stage, StageRecord] = {}
    for done, (stage, contract) in enumerate(contracts.items()):
        progress(done, len(contracts))
        module = load_stage(merged.path, stage)
        for _, tensors in references:
            tensors |= run_stage(module, contract, tensors)
        stages[stage] = _write_stage(folder, module, contract, settings, *attention)
        del module
        gc.collect()  # the exporter leaves reference cycles that hold the stage's weights
    shutil.copyfile(run.tokenizer_path, folder / TOKENIZER_NAME)
    write_reference(folder / REFERENCE_NAME, [_reference_sample(*reference, keep_aspect) for reference in references])
    manifest = Manifest(
        preset=config.preset,
        geometry=geometry(config),
        stages=stages,
        preprocessing=Preprocessing(
            image_size=config.image_size,
            siglip_size=config.siglip.image_size,
            siglip_mean=config.preprocessing.siglip_mean,
            siglip_std=config.preprocessing.siglip_std,
            sam_size=config.sam.image_size,
            sam_mean=config.preprocessing.sam_mean,
            sam_std=config.preprocessing.sam_std,
            resize=config.preprocessing.resize,
            profile=config.preprocessing.profile,
            keep_aspect=keep_aspect,
        ),
        text=TextPolicy(
            padding=config.text_padding, length=config.siglip.text_length, pad_id=config.siglip.pad_token_id
        ),
        tokenizer=file_record(folder / TOKENIZER_NAME),
        reference=file_record(folder / REFERENCE_NAME),
        provenance=Provenance(
            checkpoint_sha256=digest(merged.path),
            random_weights=merged.header.get("random_weights") is True,
            merge_proof=merged.header.get("merge", {}),
            versions=versions() | {package: version(package) for package in ("onnx", "onnxscript")},
        ),
        presence=presence_of(run, digest(merged.path)),
    )
    Bundle.write_manifest(folder, manifest)
    progress(len(contracts), len(contracts))
    return manifest


def _write_stage(
    folder: Path,
    module: nn.Module,
    contract: StageContract,
    settings: ExportSettings,
    attention: AttentionChoice,
    reason: str,
) -> StageRecord:
    """Fold, convert, export and check one stage. The module is unusable afterwards."""
    stage, path = contract.stage, folder / f"{contract.stage}.onnx"
    module = fold_for_inference(module, attention, settings.fp16, settings.fused)
    parts, fp32_sums = {}, stage in settings.fp32_sums
    if settings.plan is not None:
        parts = convert_to_half(stage, module, settings.plan.get(stage, {}), fp32_sums)
    flops = count_flops(module, contract)
    export_graph(module, contract, path, settings.opset)
    parameters, weight_bytes = count_weights(check_graph(path, contract, settings.opset))
    return StageRecord(
        contract=contract,
        graph=file_record(path),
        data=tuple(file_record(data) for data in sorted(folder.glob(f"{path.name}.data*"))),
        opset=settings.opset,
        precision="fp16" if settings.fp16 else "fp32",
        attention=_attention_record(attention, settings, reason) if stage is Stage.SAM_ENCODER else None,
        flops=flops,
        parameters=parameters,
        weight_bytes=weight_bytes,
        precision_plan=tuple(KeptFp32(module=part, reason=why) for part, why in parts.items()),
        fp32_sums=fp32_sums,
    )


def _attention_record(attention: AttentionChoice, settings: ExportSettings, reason: str) -> AttentionRecord:
    fused = settings.fused and AttentionForm.FOLDED not in (attention.windowed, attention.whole)
    return AttentionRecord(**asdict(attention), target=settings.runtime, reason=reason, fused=fused)


def _reference_sample(entry: ReferenceInput, tensors: dict[str, Tensor], keep_aspect: bool) -> ReferenceSample:
    """Return a reference input with PyTorch's outputs of all stages, and its masks at the image's size."""
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    side, size = tensors["image"].shape[-1], entry.original_size
    masks = [upsample_logits(logits, side, size, keep_aspect=keep_aspect) > 0 for logits in arrays["mask_logits"][:, 0]]
    return ReferenceSample(entry.phrases, arrays, np.stack(masks), size)


def _check_free_space(destination: Path, merged: Path, bundles: int) -> None:
    folder = destination.resolve().parent
    while not folder.exists():
        folder = folder.parent
    needed = bundles * merged.stat().st_size * _FREE_SPACE_FACTOR + _FREE_SPACE_BYTES
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise BadInputError(
            f"the bundle needs {needed / 2**20:.0f} MiB, the disk of '{destination}' has {free / 2**20:.0f} MiB free: "
            "free some or choose another place with --out"
        )
