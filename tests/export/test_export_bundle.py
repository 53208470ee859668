"""What export leaves behind: a bundle that says what it is, from a run in any state, or nothing at all."""

import errno
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace
from torch import Tensor, nn

from rsrefseg.checkpoints.model_file import digest, load_model, load_tensors, save_tensors
from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.bundle.contracts import Dim, Stage, StageContract
from rsrefseg.engines.errors import BadInputError, CheckFailedError, RSRefSegError
from rsrefseg.export import export as bundle_module
from rsrefseg.export.checks import check_graph
from rsrefseg.export.export import export_run
from rsrefseg.export.flops import count_flops
from rsrefseg.export.graph import export_graph
from rsrefseg.model.model import RSRefSeg, build_model, geometry
from rsrefseg.model.stages import model_contracts
from rsrefseg.train.run import Run
from tests.support import ROOT
from tests.support.export_jobs import Shortcut
from tests.support.exported import Exported
from tests.support.small import small_config


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def bundle(exported: Exported) -> Bundle:
    return Bundle.open(exported.bundle)


@pytest.fixture(scope="module")
def model(exported: Exported) -> RSRefSeg:
    return load_model(Run(exported.run).merged_path)


@pytest.fixture
def run(exported: Exported, tmp_path: Path) -> Run:
    """A copy of the run, to be spoiled."""
    return Run(Path(shutil.copytree(exported.run, tmp_path / "run")))


@pytest.fixture
def shortcut(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> Shortcut:
    shortcut = Shortcut(exported.bundle)
    monkeypatch.setattr(bundle_module, "export_graph", shortcut)
    return shortcut


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# The bundle


def test_a_graph_that_fails_its_check_never_gets_into_a_bundle(
    run: Run, exported: Exported, tmp_path: Path, shortcut: Shortcut, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other_contract(module: nn.Module, contract: StageContract, path: Path, opset: int) -> None:
        shortcut(module, contract, path, opset)
        if contract.stage is Stage.SAM_DECODER:
            shutil.copy(exported.bundle / "attn_prompter.onnx", path)
            shutil.copy(exported.bundle / "attn_prompter.onnx.data", path.parent)

    monkeypatch.setattr(bundle_module, "export_graph", other_contract)
    out = Path(shutil.copytree(exported.bundle, tmp_path / "out" / "bundle"))
    before = contents(out)
    for destination in (out, tmp_path / "out" / "none"):
        with pytest.raises(CheckFailedError, match="sam_decoder"):
            export_run(run.path, destination)
    assert contents(out) == before
    assert [path.name for path in out.parent.iterdir()] == ["bundle"]


def test_the_same_export_again_replaces_the_bundle_by_the_same_bytes(
    run: Run, exported: Exported, tmp_path: Path
) -> None:
    """Whatever stood there before is gone, and nothing stays behind."""
    out = Path(shutil.copytree(exported.bundle, tmp_path / "out" / "bundle"))
    (out / "siglip_text.onnx").write_bytes(b"another graph")
    (out / "left-over.txt").write_text("of an older release")
    report = export_run(run.path, out)
    assert contents(out) == contents(exported.bundle)
    assert [path.name for path in out.parent.iterdir()] == ["bundle"]
    assert report.size_bytes == sum(len(data) for name, data in contents(out).items() if name != "bundle.json")
    stages = report.as_dict()["stages"]
    assert list(stages) == [str(stage) for stage in Stage]
    assert all(row["gflop"] > 0 and row["parameters"] > 0 and row["size_bytes"] > 0 for row in stages.values())


def test_no_path_of_this_machine_is_in_any_file(exported: Exported) -> None:
    """Nor its users and versions of the interpreter's folders: a bundle is given away."""
    places = {
        ROOT,
        exported.run,
        exported.run.parents[2],
        Path.home(),
        Path(tempfile.gettempdir()),
    }
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
    assert bundle.tokenizer_path.read_bytes() == run.tokenizer_path.read_bytes()
    assert {record.precision for record in manifest.stages.values()} == {"fp32"}


def test_the_stated_preprocessing_is_what_the_graphs_do(bundle: Bundle, model: RSRefSeg) -> None:
    """Undone by the figures of the manifest, the first convolution's input is the picture again."""
    stated = bundle.manifest.preprocessing
    picture = torch.arange(3 * 64 * 64, dtype=torch.int64).remainder(256).to(torch.uint8).view(1, 3, 64, 64)
    seen: list[Tensor] = []

    def keep(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0])

    towers = (
        (model.siglip_vision, stated.siglip_mean, stated.siglip_std),
        (model.sam_encoder, stated.sam_mean, stated.sam_std),
    )
    for tower, mean, std in towers:
        first = next(module for module in tower.modules() if isinstance(module, nn.Conv2d))
        hook = first.register_forward_pre_hook(keep)
        with torch.no_grad():
            tower(picture)
        hook.remove()
        back = seen.pop() * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)
        assert torch.allclose(back, picture / 255.0, atol=1e-5)


def test_parameters_are_counted_from_the_graph(bundle: Bundle, model: RSRefSeg) -> None:
    """Weights that are equal are stored once, constants are stored as well: the count is near the model's own."""
    for stage in (Stage.SIGLIP_VISION, Stage.SIGLIP_TEXT, Stage.SAM_ENCODER):
        of_model = sum(parameter.numel() for parameter in model.stage(stage).parameters())
        assert bundle.manifest.stages[stage].parameters == pytest.approx(of_model, rel=0.05)


def test_whoever_may_read_other_new_files_may_read_a_bundle(exported: Exported, tmp_path: Path) -> None:
    (tmp_path / "any").touch()
    usual = stat.S_IMODE((tmp_path / "any").stat().st_mode)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in exported.bundle.iterdir()}
    assert modes == dict.fromkeys(modes, usual)


def test_the_bundle_goes_where_it_was_told_or_where_it_is_looked_for(
    run: Run, tmp_path: Path, shortcut: Shortcut, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RSREFSEG_BUNDLE", raising=False)
    (tmp_path / "empty").mkdir()
    assert export_run(run.path, tmp_path / "deep" / "er").bundle == str(tmp_path / "deep" / "er")
    assert export_run(run.path, tmp_path / "empty").bundle == str(tmp_path / "empty")
    assert export_run(run.path, None).bundle == "bundle"
    monkeypatch.setenv("RSREFSEG_BUNDLE", "elsewhere")
    assert export_run(run.path, None).bundle == "elsewhere"
    for place in ("deep/er", "empty", "bundle", "elsewhere"):
        opened = Bundle.open(tmp_path / place)
        for record in opened.manifest.files:
            opened.verified_path(record.name)


def test_what_is_no_bundle_is_not_replaced(run: Run, tmp_path: Path, shortcut: Shortcut) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.txt").write_text("mine")
    for place in ("file", "folder"):
        with pytest.raises(BadInputError, match=rf"{place}' exists and is no bundle.*--out"):
            export_run(run.path, tmp_path / place)
    assert (tmp_path / "folder" / "thesis.txt").read_text() == (tmp_path / "file").read_text() == "mine"
    assert shortcut.exported == []


def test_a_disk_that_is_too_full_is_told_before_the_work(
    run: Run, tmp_path: Path, shortcut: Shortcut, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    asked: list[Path] = []

    def nearly_full(path: Path) -> Any:
        asked.append(path)
        return usage._replace(free=10 << 20)

    monkeypatch.setattr(shutil, "disk_usage", nearly_full)
    with pytest.raises(BadInputError, match=r"needs \d+ MiB, the disk of '.*bundle' has 10 MiB free: .*--out"):
        export_run(run.path, tmp_path / "new" / "bundle")
    assert asked == [tmp_path]  # the nearest folder that is there
    assert shortcut.exported == []
    assert not (tmp_path / "new").exists()


def test_a_disk_that_fills_up_meanwhile_keeps_the_old_bundle(
    run: Run, exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(module: nn.Module, contract: StageContract, path: Path, opset: int) -> None:
        path.write_bytes(b"the beginning")
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(bundle_module, "export_graph", full)
    out = Path(shutil.copytree(exported.bundle, tmp_path / "out" / "bundle"))
    with pytest.raises(RSRefSegError, match=r"no space left on the disk of '.*bundle'") as refusal:
        export_run(run.path, out)
    assert refusal.value.exit_code == 2
    assert contents(out) == contents(exported.bundle)
    assert [path.name for path in out.parent.iterdir()] == ["bundle"]


# The run


def train_on(run: Run, factor: float) -> None:
    """What one more step of training does to the run's best weights."""
    best = load_tensors(run.best_path)
    changed = {name: tensor * factor if tensor.is_floating_point() else tensor for name, tensor in best.tensors.items()}
    header = {name: value for name, value in best.header.items() if name not in ("format", "schema_version")}
    save_tensors(run.best_path, changed, header)


def test_a_run_trained_on_since_its_last_merge_is_merged_again(run: Run, tmp_path: Path, shortcut: Shortcut) -> None:
    before = digest(run.merged_path)
    export_run(run.path, tmp_path / "one")
    assert digest(run.merged_path) == before, "nothing changed, nothing to merge"
    train_on(run, 1.01)
    export_run(run.path, tmp_path / "two")
    assert digest(run.merged_path) != before
    assert load_tensors(run.merged_path).header["source"]["run_best_sha256"] == digest(run.best_path)
    assert Bundle.open(tmp_path / "two").manifest.provenance.checkpoint_sha256 == digest(run.merged_path)


def test_a_run_that_was_never_merged_is_merged(run: Run, tmp_path: Path, shortcut: Shortcut) -> None:
    before = digest(run.merged_path)
    run.merged_path.unlink()
    export_run(run.path, tmp_path / "bundle")
    assert digest(run.merged_path) == before


def test_a_merged_model_is_enough(run: Run, tmp_path: Path, shortcut: Shortcut) -> None:
    """What somebody was given: the model, its tokenizer and reference inputs, no training state."""
    for path in (run.best_path, run.last_path, run.record_path, run.metrics_path):
        path.unlink()
    export_run(run.path, tmp_path / "bundle")
    assert Bundle.open(tmp_path / "bundle").manifest.preset == "small"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda run: shutil.rmtree(run.path), "is no run"),
        (lambda run: run.tokenizer_path.unlink(), r"no tokenizer at '.*tokenizer\.json'"),
        (lambda run: run.tokenizer_path.write_text("{}"), "tokenizer"),
        (lambda run: run.reference_inputs_path.unlink(), r"reference_inputs\.safetensors' does not exist"),
        (lambda run: cut(run.reference_inputs_path), r"reference_inputs\.safetensors' is no whole"),
        (lambda run: cut(run.merged_path), r"merged\.safetensors' is no whole"),
        (lambda run: shutil.copy(run.last_path, run.merged_path), "merged|holds part of a model"),
    ],
)
def test_a_damaged_run_is_refused_before_the_work(
    run: Run, tmp_path: Path, shortcut: Shortcut, spoil: Callable[[Run], Any], told: str
) -> None:
    spoil(run)
    if run.best_path.exists() and "holds part" in told:
        run.best_path.unlink()
    with pytest.raises(BadInputError, match=told):
        export_run(run.path, tmp_path / "bundle")
    assert shortcut.exported == []
    assert not (tmp_path / "bundle").exists()


def test_the_latest_run_is_the_default(
    exported: Exported, tmp_path: Path, shortcut: Shortcut, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInputError, match="no run under 'runs'"):
        export_run(None, tmp_path / "bundle")
    shutil.copytree(exported.run, tmp_path / "runs" / "007")
    assert export_run(None, tmp_path / "bundle").run == str(Path("runs/007"))


def test_contracts_of_another_size_are_exported_by_the_same_code(tmp_path: Path) -> None:
    """Nothing in the exporter knows how many phrases there may be."""
    model = build_model(small_config(), seed=2)
    contract = model_contracts(model)[Stage.SIGLIP_TEXT]
    few = Dim("phrases", 1, 2, 3)

    def resized(spec: Any) -> Any:
        return replace(spec, shape=tuple(few if isinstance(size, Dim) else size for size in spec.shape))

    changed = replace(
        contract,
        inputs=tuple(resized(spec) for spec in contract.inputs),
        outputs=tuple(resized(spec) for spec in contract.outputs),
    )
    path = tmp_path / "siglip_text.onnx"
    export_graph(model.siglip_text, changed, path)
    check_graph(path, changed)
    one = count_flops(path, contract)
    assert count_flops(path, changed) == 2 * one
