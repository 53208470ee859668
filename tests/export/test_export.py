"""What export leaves behind: a bundle that says what it is, from a run in any state, or nothing at all."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rsrefseg.checkpoints.model_file import digest, load_tensors, save_tensors
from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.bundle.contracts import Stage, StageContract
from rsrefseg.engines.bundle.manifest import Manifest
from rsrefseg.engines.errors import BadInputError, CheckFailedError
from rsrefseg.export import export as export_module
from rsrefseg.export.export import export_run
from rsrefseg.export.quantization.settings import QuantizationSettings
from rsrefseg.export.settings import ExportSettings
from rsrefseg.model.model import RSRefSeg, geometry
from rsrefseg.runs.run import Run
from tests.support import ROOT
from tests.support.export_jobs import Shortcut
from tests.support.exported import Exported
from tests.support.places import cut_in_half
from tests.support.runs import contents


@pytest.fixture
def run(exported: Exported, tmp_path: Path) -> Run:
    """A copy of the run, to be spoiled."""
    return Run(Path(shutil.copytree(exported.run, tmp_path / "run")))


@pytest.fixture
def shortcut(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> Shortcut:
    shortcut = Shortcut(exported.bundle)
    monkeypatch.setattr(export_module, "export_graph", shortcut)
    return shortcut


def test_the_same_export_again_gives_the_same_bytes(run: Run, exported: Exported, tmp_path: Path) -> None:
    """Nothing of what was there before stays behind."""
    out = Path(shutil.copytree(exported.bundle, tmp_path / "out" / "bundle"))
    (out / "siglip_text.onnx").write_bytes(b"another graph")
    (out / "left-over.txt").write_text("of an older release")
    report = export_run(run.path, out)
    assert contents(out) == contents(exported.bundle)
    assert [path.name for path in out.parent.iterdir()] == ["bundle"]
    assert report.size_bytes == sum(len(data) for name, data in contents(out).items() if name != "bundle.json")
    stages = report.to_dict()["stages"]
    assert list(stages) == [str(stage) for stage in Stage]
    assert all(row["gflop"] > 0 and row["parameters"] > 0 and row["size_bytes"] > 0 for row in stages.values())


def test_data_that_cannot_be_used_are_refused_before_anything_is_made(tmp_path: Path) -> None:
    settings = ExportSettings(quantization=QuantizationSettings(data=tmp_path / "missing"))
    with pytest.raises(BadInputError, match="missing"):
        export_run(tmp_path / "run", tmp_path / "bundle", settings, base=True)
    assert list(tmp_path.iterdir()) == []


def test_no_path_of_this_machine_is_in_any_file(exported: Exported) -> None:
    """A bundle is given away."""
    places = {ROOT, exported.run, exported.run.parents[2], Path.home(), Path(tempfile.gettempdir())}
    marks = [str(place).encode() for place in places if len(str(place)) > 3] + [b"site-packages", b"torch/nn/modules"]
    for name, data in contents(exported.bundle).items():
        for mark in marks:
            assert mark not in data, f"{name} holds {mark!r}"


def test_the_manifest_says_what_the_model_is(bundle: Bundle, model: RSRefSeg, exported: Exported) -> None:
    manifest, run = bundle.manifest, Run(exported.run)
    assert manifest.preset == "small"
    assert manifest.geometry == geometry(model.config)
    assert manifest.provenance.checkpoint_sha256 == digest(run.merged_path)
    assert manifest.provenance.merge_proof == load_tensors(run.merged_path).header["merge"]
    assert {"torch", "onnx", "onnxscript", "transformers"} <= manifest.provenance.versions.keys()
    assert (manifest.text.padding, manifest.text.length, manifest.text.pad_id) == ("fixed", 12, 1)
    assert (manifest.preprocessing.image_size, manifest.preprocessing.siglip_size) == (64, 64)
    assert (bundle.root / "tokenizer.json").read_bytes() == run.tokenizer_path.read_bytes()
    assert {record.precision for record in manifest.stages.values()} == {"fp32"}


def test_the_stated_preprocessing_is_what_the_graphs_do(bundle: Bundle, model: RSRefSeg) -> None:
    """Undone by the manifest's figures, the first convolution's input is the image again."""
    stated = bundle.manifest.preprocessing
    image = torch.arange(3 * 64 * 64, dtype=torch.int64).remainder(256).to(torch.uint8).view(1, 3, 64, 64)
    seen: list[Tensor] = []
    towers = (
        (model.siglip_vision, stated.siglip_mean, stated.siglip_std),
        (model.sam_encoder, stated.sam_mean, stated.sam_std),
    )
    for tower, mean, std in towers:
        first = next(module for module in tower.modules() if isinstance(module, nn.Conv2d))
        hook = first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        with torch.no_grad():
            tower(image)
        hook.remove()
        back = seen.pop() * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)
        assert torch.allclose(back, image / 255.0, atol=1e-5)


def test_the_latest_run_goes_to_out_or_to_the_default_place(
    exported: Exported, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copy(folder: Path, *_: Any) -> Manifest:
        shutil.copytree(exported.bundle, folder, dirs_exist_ok=True)
        return bundle.manifest

    monkeypatch.setattr(export_module, "_write_bundle", copy)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RSREFSEG_BUNDLE", raising=False)
    with pytest.raises(BadInputError, match="runs"):
        export_run(None, None)
    shutil.copytree(exported.run, "runs/007")
    Path("empty").mkdir()
    reports = [export_run(None, out) for out in (Path("deep/er"), Path("empty"), None)]
    monkeypatch.setenv("RSREFSEG_BUNDLE", "elsewhere")
    reports.append(export_run(None, None))
    assert [report.bundle for report in reports] == ["deep/er", "empty", "bundle", "elsewhere"]
    for report in reports:
        assert report.run == "runs/007"
        assert contents(Path(report.bundle)) == contents(exported.bundle)


def test_a_graph_that_fails_its_check_never_gets_into_a_bundle(
    run: Run, exported: Exported, tmp_path: Path, shortcut: Shortcut, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other_contract(module: nn.Module, contract: StageContract, path: Path, opset: int) -> None:
        shortcut(module, contract, path, opset)
        if contract.stage is Stage.SAM_DECODER:
            shutil.copy(exported.bundle / "attn_prompter.onnx", path)
            shutil.copy(exported.bundle / "attn_prompter.onnx.data", path.parent)

    monkeypatch.setattr(export_module, "export_graph", other_contract)
    out = Path(shutil.copytree(exported.bundle, tmp_path / "out" / "bundle"))
    for destination in (out, tmp_path / "out" / "none"):
        with pytest.raises(CheckFailedError, match="sam_decoder"):
            export_run(run.path, destination)
    assert contents(out) == contents(exported.bundle)
    assert [path.name for path in out.parent.iterdir()] == ["bundle"]


def test_a_disk_that_is_too_full_is_reported_before_the_work(
    run: Run, tmp_path: Path, shortcut: Shortcut, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10 << 20))
    with pytest.raises(BadInputError, match=r"needs \d+ MiB.*10 MiB free"):
        export_run(run.path, tmp_path / "new" / "bundle")
    assert shortcut.exported == []
    assert not (tmp_path / "new").exists()


def train_on(run: Run) -> None:
    """Change the run's best weights, as one more step of training does."""
    best = load_tensors(run.best_path)
    name = next(name for name, tensor in best.tensors.items() if tensor.is_floating_point())
    save_tensors(run.best_path, best.tensors | {name: best.tensors[name] * 1.01}, best.header)


def test_a_run_is_merged_if_needed_and_a_merged_model_is_enough(run: Run, tmp_path: Path, shortcut: Shortcut) -> None:
    before = digest(run.merged_path)
    export_run(run.path, tmp_path / "one")
    assert digest(run.merged_path) == before, "nothing changed, nothing to merge"
    for change in (lambda run: run.merged_path.unlink(), train_on):
        change(run)
        export_run(run.path, tmp_path / "two")
        assert load_tensors(run.merged_path).header["source"]["run_best_sha256"] == digest(run.best_path)
    for path in (run.best_path, run.record_path, run.metrics_path):
        path.unlink()
    export_run(run.path, tmp_path / "three")
    for name in ("two", "three"):
        assert Bundle.open(tmp_path / name).manifest.provenance.checkpoint_sha256 == digest(run.merged_path)


@pytest.mark.parametrize(
    ("spoil", "key"),
    [
        (lambda run: shutil.rmtree(run.path), "run"),
        (lambda run: run.tokenizer_path.unlink(), "tokenizer"),
        (lambda run: run.tokenizer_path.write_text("{}"), "tokenizer"),
        (lambda run: run.reference_inputs_path.unlink(), "reference_inputs"),
        (lambda run: cut_in_half(run.reference_inputs_path), "reference_inputs"),
        (lambda run: cut_in_half(run.merged_path), "merged"),
        (lambda run: run.best_path.rename(run.merged_path), "merged|part of a model"),
        (lambda run: run.path.with_name("bundle").write_text("mine"), "bundle'.*--out"),
        (lambda run: shutil.copytree(run.path, run.path.with_name("bundle")), "bundle'.*--out"),
    ],
)
def test_a_damaged_run_and_a_place_of_something_else_are_refused_before_the_work(
    run: Run, tmp_path: Path, shortcut: Shortcut, spoil: Callable[[Run], Any], key: str
) -> None:
    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() if path.is_file() else b"" for path in tmp_path.rglob("*")}

    spoil(run)
    before = files()
    with pytest.raises(BadInputError, match=key):
        export_run(run.path, tmp_path / "bundle")
    assert shortcut.exported == []
    assert files() == before
