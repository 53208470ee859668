"""Commands that import weights: train --sam --siglip, convert, export --random-weights."""

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from msgspec.structs import replace
from safetensors.torch import load_file

from rsrefseg.checkpoints.model_file import is_random, load_model
from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.bundle.manifest import RANDOM_WEIGHTS_NOTE
from rsrefseg.export.export import export_run
from rsrefseg.runs.convert import convert_checkpoint
from rsrefseg.runs.imported_run import rendered_scenes
from tests.support.commands import assert_refused, run_here
from tests.support.export_jobs import Shortcut
from tests.support.upstream import PHRASES, PublicRSRefSeg, brought_config, segment_anything_sam, write_siglip_folder
from tests.support.words import write_word_tokenizer

Capture = pytest.CaptureFixture[str]
# Room for the words of the rendered scenes, in the vocabulary and in a phrase.
CONFIG = replace(brought_config(), siglip=replace(brought_config().siglip, vocab_size=200, text_length=24))
TRAIN = ("--epochs", "1", "--warmup-epochs", "0", "--precision", "fp32", "--rank", "4")


@pytest.fixture(autouse=True)
def _small_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace every preset by the small model."""
    torch.set_num_threads(1)
    for module in ("rsrefseg.model.config", "rsrefseg.train.settings", "rsrefseg.export.export"):
        monkeypatch.setattr(f"{module}.model_config", lambda preset: CONFIG)
    monkeypatch.delenv("RSREFSEG_BUNDLE", raising=False)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a folder with a public checkpoint, its converted run and its bundle. Read-only."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("converted")
    torch.save({"module": PublicRSRefSeg(CONFIG).state_dict()}, root / "public.pth")
    phrases = [referral.phrase for scene in rendered_scenes() for referral in scene.referrals]
    write_word_tokenizer(root / "tokenizer.json", [*PHRASES, *phrases], CONFIG.siglip.vocab_size)
    convert_checkpoint(root / "public.pth", root / "run", CONFIG, root / "tokenizer.json")
    export_run(root / "run", root / "bundle")
    return root


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to a folder with SAM's file and SigLIP's folder."""
    monkeypatch.chdir(tmp_path)
    torch.save(segment_anything_sam(CONFIG).state_dict(), "sam.pth")
    write_siglip_folder(tmp_path / "siglip", CONFIG)
    return tmp_path


def test_a_run_on_public_files_records_them_and_merges(files: Path, boxes: Path, capsys: Capture) -> None:
    given = ("train", "--data", boxes, "--sam", "sam.pth", "--siglip", "siglip", "--out", "run", *TRAIN)
    ran = run_here(capsys, *given)
    assert ran.code == 0, ran.err
    assert "note: 'siglip': left out tensors that RSRefSeg does not use: vision_model.head." in ran.err
    base = json.loads(Path("run/run.json").read_text())["base"]
    assert base["kind"] == "files"
    assert base["files"]["sam"]["path"] == str(files / "sam.pth")
    assert len(base["files"]["siglip"]["sha256"]) == 64
    assert Path("run/tokenizer.json").read_bytes() == Path("siglip/tokenizer.json").read_bytes()

    assert run_here(capsys, "merge", "run").code == 0
    merged, published = load_model(Path("run/merged.safetensors")).state_dict(), load_file("siglip/model.safetensors")
    untouched = "encoder.layers.0.mlp.fc1.weight"  # no adapter there
    assert torch.equal(merged[f"siglip_text.{untouched}"], published[f"text_model.{untouched}"])
    assert not is_random(Path("run/merged.safetensors"))

    # The run knows its files: resuming needs no --sam and --siglip, and other files under their names are refused.
    resumed = run_here(capsys, "train", "--data", boxes, "--out", "run", "--resume", "--preset", "b")
    assert resumed.code == 0, resumed.err
    torch.save(segment_anything_sam(CONFIG, seed=9).state_dict(), "sam.pth")
    assert_refused(run_here(capsys, "merge", "run"), "sam.pth", "SHA-256 differs")


@pytest.mark.parametrize(
    ("options", "fact"),
    [
        (("--sam", "sam.pth"), "--sam and --siglip go together"),
        (("--siglip", "siglip"), "--sam and --siglip go together"),
        (("--sam", "sam.pth", "--siglip", "siglip", "--from-scratch"), "--from-scratch and --sam and --siglip"),
        (("--sam", "siglip", "--siglip", "siglip"), "'siglip' is not a SAM checkpoint"),
        (("--sam", "sam.pth", "--siglip", "sam.pth"), "'sam.pth' is not a folder"),
    ],
)
def test_an_unusable_base_is_refused(files: Path, boxes: Path, capsys: Capture, options: Any, fact: str) -> None:
    assert_refused(run_here(capsys, "train", "--data", boxes, "--out", "run", *options, *TRAIN), fact)
    assert not Path("run/run.json").exists()


def test_random_weights_are_reported_and_stamped_by_training(files: Path, boxes: Path, capsys: Capture) -> None:
    ran = run_here(capsys, "train", "--data", boxes, "--random-weights", "--out", "run", *TRAIN)
    assert ran.code == 0, ran.err
    assert "weights are random" in ran.err
    assert run_here(capsys, "merge", "run").code == 0
    assert is_random(Path("run/merged.safetensors"))


def test_convert_reports_what_it_took_and_what_it_left(converted: Path, tmp_path: Path, capsys: Capture) -> None:
    given = ("convert", converted / "public.pth", "--out", tmp_path / "run", "--preset", "b")
    ran = run_here(capsys, *given, "--tokenizer", converted / "tokenizer.json")
    assert ran.code == 0, ran.err
    assert "19 LoRA adapters" in ran.out
    assert "clip_vision_encoder.model.head." in ran.out
    document = run_here(capsys, *given[:3], tmp_path / "other", "--preset", "b", "--tokenizer", converted, "--json")
    assert json.loads(document.out)["adapters"] == 19
    assert_refused(run_here(capsys, "merge", tmp_path / "run"), "export it directly")


def test_a_converted_run_is_exported_with_proof(converted: Path, capsys: Capture) -> None:
    manifest = Bundle.open(converted / "bundle").manifest
    assert manifest.text.padding == "longest"
    assert not manifest.provenance.random_weights
    assert manifest.provenance.notes == ()
    ran = run_here(capsys, "parity", "--bundle", converted / "bundle")
    assert ran.code == 0, ran.out
    assert ran.result["notes"] == []


def test_a_converted_model_is_a_base(converted: Path, boxes: Path, tmp_path: Path, capsys: Capture) -> None:
    base = converted / "run" / "merged.safetensors"
    given = ("train", "--data", boxes, "--base", base, "--out", tmp_path / "run", "--text-padding", "longest", *TRAIN)
    assert run_here(capsys, *given).code == 0


def test_a_bundle_of_random_weights_is_marked(converted: Path, files: Path, boxes: Path, capsys: Capture) -> None:
    # The graphs are the converted model's; only the stamp matters here.
    with patch("rsrefseg.export.export.export_graph", Shortcut(converted / "bundle")):
        ran = run_here(capsys, "export", "--random-weights", "b")
    assert ran.code == 0, ran.err
    assert is_random(Path("runs/001/merged.safetensors"))
    assert Bundle.open(Path("bundle")).manifest.provenance.random_weights
    image = next(boxes.rglob("*.jpg"))
    phrase = rendered_scenes()[0].referrals[0].phrase
    assert RANDOM_WEIGHTS_NOTE in run_here(capsys, "infer", image, phrase).out
    assert run_here(capsys, "infer", image, phrase, "--json").result["notes"] == [RANDOM_WEIGHTS_NOTE]
    assert RANDOM_WEIGHTS_NOTE in run_here(capsys, "parity").out
    measured = run_here(capsys, "bench", "--rounds", "3", "--backends", "onnxruntime")
    assert measured.code == 1, "the converted model differs from the random one"
    assert RANDOM_WEIGHTS_NOTE in measured.out
    assert RANDOM_WEIGHTS_NOTE in measured.err
    write_word_tokenizer(Path("runs/001/tokenizer.json"), PHRASES, CONFIG.siglip.vocab_size)
    scored = run_here(capsys, "eval", "--data", boxes, "--split", "val", "--run", "runs/001")
    assert "random weights" in scored.out
