"""``export``: a run's merged model becomes a bundle, whole or not at all."""

import gc
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from msgspec.structs import replace
from torch import nn

from rsrefseg.checkpoints.model_file import TensorFile, config_of, digest, load_stage, load_tensors
from rsrefseg.checkpoints.random_run import make_random_run
from rsrefseg.engines.bundle.bundle import REFERENCE_NAME, TOKENIZER_NAME, Bundle, default_bundle_path, file_record
from rsrefseg.engines.bundle.contracts import Stage, StageContract, stage_contracts
from rsrefseg.engines.bundle.manifest import (
    MANIFEST_NAME,
    KeptFp32,
    Manifest,
    Precision,
    Preprocessing,
    Provenance,
    StageRecord,
    TextPolicy,
)
from rsrefseg.engines.bundle.reference import write_reference
from rsrefseg.engines.errors import BadInputError
from rsrefseg.engines.system.files import atomic_directory, recover_directory
from rsrefseg.engines.system.progress import ProgressLine
from rsrefseg.inference.stages import make_lean
from rsrefseg.model import sam, siglip
from rsrefseg.model.config import model_config
from rsrefseg.model.model import geometry
from rsrefseg.train.merge import current_merge, merge
from rsrefseg.train.run import Run, latest_run, next_run
from rsrefseg.train.setup import versions

from .checks import check_graph
from .flops import count_flops
from .graph import export_graph
from .precision.half_blocks import check_plan, make_half
from .precision.plan import PrecisionPlan
from .reference import ReferenceMaker
from .settings import GraphSettings
from .weights import count_weights

# Graphs hold the merged file's weights, some as constants of another shape; the reference has 16 MiB an image at -l.
_FREE_SPACE_FACTOR = 1.2
_FREE_SPACE_BYTES = 64 << 20
DEFAULT_SETTINGS = GraphSettings()


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written: per stage its parameters, GFLOP for one image and phrase, and bytes on disk."""

    bundle: str
    run: str
    stages: Mapping[str, Mapping[str, float]]
    size_bytes: int

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {"bundle": self.bundle, "run": self.run, "stages": dict(self.stages), "size_bytes": self.size_bytes}

    def render(self) -> Any:
        """A table for a person."""
        from rich.table import Table

        table = Table(title=f"{self.run} -> {self.bundle}  ({self.size_bytes / 2**20:.1f} MiB)", title_justify="left")
        for column in ("stage", "parameters", "GFLOP", "MiB"):
            table.add_column(column, justify="left" if column == "stage" else "right")
        for name, row in self.stages.items():
            table.add_row(name, f"{row['parameters']:,}", f"{row['gflop']:.3f}", f"{row['size_bytes'] / 2**20:.2f}")
        return table


def export_run(
    run_path: Path | None,
    out: Path | None,
    half: PrecisionPlan | None = None,
    settings: GraphSettings = DEFAULT_SETTINGS,
) -> ExportReport:
    """Export a run, merging it first where that was not done since its last training.

    Args:
        run_path: the run's folder; the latest under ``./runs`` by default.
        out: the bundle's folder.
        half: write half precision by this plan; float32 without one.
        settings: target, attention and operator set.

    Raises:
        BadInputError: there is no such run, ``out`` holds something that is no bundle, or the plan or the settings name
            what the model does not have.
        CheckFailedError: the merge or a graph did not pass its check; nothing is written.
        RSRefSegError: the disk is nearly full or the folder cannot be written.
    """
    run = Run(run_path) if run_path is not None else latest_run()
    destination = out if out is not None else default_bundle_path()
    check_destination(destination)
    merged = _merged(run)
    if half is not None:
        check_plan(half, config_of(merged))
    settings.choice(config_of(merged).sam, half is not None)
    _check_free_space(destination, merged.path)
    with ProgressLine(f"exporting {destination}") as progress, atomic_directory(destination, MANIFEST_NAME) as folder:
        manifest = write_bundle(folder, run, merged, progress.update, half, settings)
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
    )


def export_random(
    preset: str,
    run_path: Path | None,
    out: Path | None,
    half: PrecisionPlan | None = None,
    settings: GraphSettings = DEFAULT_SETTINGS,
) -> ExportReport:
    """Export a model of random weights: its sizes and times are those of a trained one, its masks mean nothing.

    Args:
        preset: which sizes.
        run_path: folder for the run to make; the next free one under ``./runs`` by default.
        out: the bundle's folder.
        half: as in ``export_run``.
        settings: likewise.

    Raises:
        BadInputError: there is no such preset, or a folder holds something else.
        CheckFailedError: a graph did not pass its check; nothing is written.
        RSRefSegError: the disk is nearly full or a folder cannot be written.
    """
    config = model_config(preset)
    check_destination(out if out is not None else default_bundle_path())
    if half is not None:
        check_plan(half, config)
    settings.choice(config.sam, half is not None)
    run = make_random_run(run_path if run_path is not None else next_run(), config)
    return export_run(run.path, out, half, settings)


def write_bundle(
    folder: Path,
    run: Run,
    merged: TensorFile,
    progress: Callable[[int, int], None],
    half: PrecisionPlan | None = None,
    settings: GraphSettings = DEFAULT_SETTINGS,
) -> Manifest:
    """Write all files of a bundle into ``folder``, ``bundle.json`` last. One stage at a time is in memory."""
    config = config_of(merged)
    contracts = stage_contracts(geometry(config))
    reference = ReferenceMaker(run, config)
    stages: dict[Stage, StageRecord] = {}
    for done, (stage, contract) in enumerate(contracts.items()):
        progress(done, len(contracts))
        module = load_stage(merged.path, stage)
        reference.run(module, contract)
        module = make_lean(module, settings.choice(config.sam, half is not None), half is not None, settings.fused)
        parts = make_half(stage, module, half.of(stage)) if half is not None else ()
        record = _write_stage(folder, module, contract, "fp32" if half is None else "fp16", settings.opset)
        stages[stage] = replace(
            record,
            attention=settings.record(config.sam, half is not None) if stage is Stage.SAM_ENCODER else None,
            precision_plan=tuple(KeptFp32(part.module, part.reason) for part in parts),
        )
        del module
        gc.collect()  # the exporter leaves cycles that hold the stage's weights
    shutil.copyfile(run.tokenizer_path, folder / TOKENIZER_NAME)
    write_reference(folder / REFERENCE_NAME, reference.samples())
    manifest = Manifest(
        preset=config.preset,
        geometry=geometry(config),
        stages=stages,
        preprocessing=Preprocessing(
            image_size=config.sam.image_size,
            siglip_size=config.siglip.image_size,
            siglip_mean=(siglip.IMAGE_MEAN,) * 3,
            siglip_std=(siglip.IMAGE_STD,) * 3,
            sam_mean=_unit_range(sam.PIXEL_MEAN),
            sam_std=_unit_range(sam.PIXEL_STD),
        ),
        text=TextPolicy(config.text_padding, config.siglip.text_length, config.siglip.pad_token_id),
        tokenizer=file_record(folder / TOKENIZER_NAME),
        reference=file_record(folder / REFERENCE_NAME),
        provenance=Provenance(
            checkpoint_sha256=digest(merged.path),
            random_weights=merged.header.get("random_weights") is True,
            merge_proof=merged.header.get("merge", {}),
            versions=versions() | {package: version(package) for package in ("onnx", "onnxscript")},
        ),
    )
    Bundle.write_manifest(folder, manifest)
    progress(len(contracts), len(contracts))
    return manifest


def check_destination(path: Path) -> None:
    """Refuse to replace anything but a bundle.

    Raises:
        BadInputError: ``path`` is a file, or a folder with other things in it.
    """
    recover_directory(path)
    if path.is_dir() and ((path / MANIFEST_NAME).is_file() or not any(path.iterdir())):
        return
    if path.exists():
        raise BadInputError(f"'{path}' exists and is no bundle: give another place with --out")


def _merged(run: Run) -> TensorFile:
    """The run's merged model, merged now unless it was since the best weights were written."""
    if (merged := current_merge(run)) is not None:
        return merged
    merge(run)
    return load_tensors(run.merged_path)


def _write_stage(
    folder: Path, module: nn.Module, contract: StageContract, precision: Precision, opset: int
) -> StageRecord:
    path = folder / f"{contract.stage}.onnx"
    export_graph(module, contract, path, opset)
    check_graph(path, contract, opset)
    weights = count_weights(path)
    return StageRecord(
        contract=contract,
        graph=file_record(path),
        data=tuple(file_record(data) for data in sorted(folder.glob(f"{path.name}.data*"))),
        opset=opset,
        precision=precision,
        attention=None,
        flops=count_flops(path, contract),
        parameters=weights.parameters,
        weight_bytes=weights.size_bytes,
    )


def _check_free_space(destination: Path, merged: Path) -> None:
    folder = destination.resolve().parent
    while not folder.exists():
        folder = folder.parent
    needed = merged.stat().st_size * _FREE_SPACE_FACTOR + _FREE_SPACE_BYTES
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise BadInputError(
            f"the bundle needs {needed / 2**20:.0f} MiB, the disk of '{destination}' has {free / 2**20:.0f} MiB free: "
            "free some or give another place with --out"
        )


def _unit_range(values: tuple[float, float, float]) -> tuple[float, float, float]:
    """SAM's constants are for 0..255, the manifest states them for 0..1."""
    red, green, blue = (value / 255.0 for value in values)
    return red, green, blue
