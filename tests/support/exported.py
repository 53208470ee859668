"""A small trained run, its exported bundle, and functions that damage such a bundle.

``small_run/`` stores the run and its base, so that no result depends on the machine of the training.
``python -m tests.support.exported`` trains it again and replaces the folder.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch

from rsrefseg.checkpoints.model_file import save_model
from rsrefseg.data.formats import open_dataset
from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.export.export import export_run
from rsrefseg.model.model import build_model
from rsrefseg.runs.base import from_file
from rsrefseg.runs.merge import merge
from rsrefseg.runs.run import Run
from rsrefseg.train.config import LossWeights
from tests.support.made_bundle import change_stage
from tests.support.small import small_config, train_small, write_boxes
from tests.support.words import write_word_tokenizer

SMALL_RUN = Path(__file__).with_name("small_run")
BASE = "base.safetensors"


@dataclass(frozen=True)
class Exported:
    """A run trained until its masks are not empty, its bundle, and its data set."""

    run: Path
    bundle: Path
    data: Path


def export_small(folder: Path, data: Path, base: Path) -> Exported:
    """Copy the stored run to ``folder``, record where its base and data set are, and export it."""
    torch.set_num_threads(1)
    run = Run(Path(shutil.copytree(SMALL_RUN, folder / "runs" / "001", ignore=shutil.ignore_patterns(BASE))))
    _record_places(run, base, data)
    export_run(run.path, folder / "bundle")
    return Exported(run.path, folder / "bundle", data)


def copy_base(folder: Path) -> Path:
    """Copy the stored run's base, an untrained model, and its tokenizer to ``folder``."""
    for name in (BASE, "tokenizer.json"):
        shutil.copyfile(SMALL_RUN / name, folder / name)
    return folder / BASE


def _record_places(run: Run, base: Path, data: Path) -> None:
    record = run.read_record()
    record["base"]["path"], record["data"]["path"] = str(base), str(data)
    run.write_record(record)


def _train(folder: Path) -> None:
    torch.set_num_threads(1)
    data, base, config = write_boxes(folder / "boxes"), folder / BASE, small_config()
    save_model(base, build_model(config, seed=1))
    phrases = [sample.phrase for sample in open_dataset(data).samples]
    write_word_tokenizer(folder / "tokenizer.json", phrases, config.siglip.vocab_size)
    loss = LossWeights(bce=1.0, dice=1.0, coarse=1.0)
    run = train_small(data, folder / "run", from_file(base), epochs=16, loss=loss, validate_every_epochs=16).run
    _record_places(run, Path(BASE), Path("boxes"))
    with contextlib.chdir(folder):
        merge(run)
    SMALL_RUN.mkdir(exist_ok=True)
    kept = (run.record_path, run.tokenizer_path, run.reference_inputs_path, run.metrics_path)
    for path in (*kept, run.best_path, run.merged_path, base):
        shutil.copy(path, SMALL_RUN)


def spoiled_bundle(
    source: Path, target: Path, stage: Stage, weight: str, change: Callable[[np.ndarray], np.ndarray]
) -> Path:
    """Copy a bundle, change the first weight whose name ends with ``weight``, and update the digest."""

    def change_weight(graph: onnx.GraphProto) -> None:
        tensor = next(tensor for tensor in graph.initializer if tensor.name.endswith(weight))
        changed = change(onnx.numpy_helper.to_array(tensor).copy())
        tensor.CopyFrom(onnx.numpy_helper.from_array(changed, tensor.name))

    return changed_bundle(source, target, stage, change_weight)


def shifted_bundle(source: Path, target: Path, stage: Stage, output: str, shift: np.ndarray) -> Path:
    """Copy a bundle and add ``shift`` to an output of a graph."""

    def add_shift(graph: onnx.GraphProto) -> None:
        true, name = f"{output}/true", f"{output}/shift"
        for node in graph.node:
            for names in (node.input, node.output):
                names[:] = [true if known == output else known for known in names]
        graph.initializer.append(onnx.numpy_helper.from_array(shift, name))
        graph.node.append(onnx.helper.make_node("Add", [true, name], [output]))

    return changed_bundle(source, target, stage, add_shift)


def changed_bundle(source: Path, target: Path, stage: Stage, change: Callable[[onnx.GraphProto], None]) -> Path:
    """Copy a bundle, change one graph and update all digests."""
    shutil.copytree(source, target)
    path = target / f"{stage}.onnx"
    model = onnx.load(path)
    change(model.graph)
    for data in target.glob(f"{path.name}.data*"):
        data.unlink()
    change_stage(target, stage, model, data=())  # small enough for one file
    return target


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        _train(Path(temporary))
