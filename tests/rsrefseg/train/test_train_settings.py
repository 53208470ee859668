"""Settings from files, recipes and options: priority, record and errors."""

import json
from pathlib import Path

import pytest

from rsrefseg.model.config import LoraSettings, Preset
from rsrefseg.train import settings as settings_module
from rsrefseg.train.config import LossWeights, TrainConfig
from rsrefseg.train.settings import resolve_settings
from tests.support.commands import assert_refused, run_here
from tests.support.runs import refused
from tests.support.small import small_config

Capture = pytest.CaptureFixture[str]

SETTINGS = """
[data]
path = "{data}"
[weights]
base = "{base}"
[training]
epochs = 1
batch_size = 5
learning_rate = 2e-3
warmup_epochs = 0
precision = "fp32"
gradient_accumulation = 2
[lora]
rank = 2
alpha = 8
[loss]
bce = 1
dice = 0.5
"""


@pytest.fixture
def settings(tmp_path: Path, boxes: Path, small_base: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Write a settings file for a small run; every preset is the small model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(settings_module, "model_config", lambda preset: small_config())
    Path("my.toml").write_text(SETTINGS.format(data=boxes, base=small_base))
    return "my.toml"


def recorded(run: str = "run") -> TrainConfig:
    return TrainConfig.from_dict(json.loads(Path(run, "run.json").read_text())["train"])


@pytest.mark.parametrize("preset", ["s", "b", "l"])
def test_the_shipped_recipes_state_the_published_values(preset: str) -> None:
    settings = resolve_settings(preset, {})
    assert settings.model.preset == Preset(preset)
    config = settings.training
    assert config.lora == LoraSettings(rank=16, alpha=16, dropout=0.1)
    assert config.loss == LossWeights(bce=5.0)
    assert (config.epochs, config.learning_rate, config.weight_decay) == (200, 1e-4, 0.05)
    assert (config.warmup_epochs, config.warmup_start, config.final_share) == (5, 0.01, 0.001)
    assert 8 <= config.batch_size * config.gradient_accumulation <= 32
    assert config.gradient_checkpointing


def test_a_recipe_without_weights_lists_all_missing_settings(tmp_path: Path, capsys: Capture) -> None:
    assert_refused(run_here(capsys, "train", "--config", "b"), "--data", "preset 'b'", "--sam and --siglip", "--base")
    assert_refused(run_here(capsys, "train", "--preset", "l", "--data", tmp_path), "preset 'l'", "--sam and --siglip")


def test_a_file_settles_what_no_option_does(settings: str, capsys: Capture) -> None:
    ran = run_here(capsys, "train", "--config", settings, "--out", "run", "--learning-rate", "1e-3", "--seed", "7")
    assert ran.code == 0, ran.err
    config = recorded()
    assert (config.epochs, config.batch_size, config.gradient_accumulation) == (1, 5, 2)
    assert (config.learning_rate, config.seed) == (1e-3, 7)
    assert config.lora == LoraSettings(rank=2, alpha=8)
    assert config.loss == LossWeights(bce=1, dice=0.5)
    assert config.weight_decay == TrainConfig().weight_decay


def test_options_override_the_file(settings: str, capsys: Capture) -> None:
    given = ("--random-weights", "--rank", "4", "--accumulation-steps", "1")
    ran = run_here(capsys, "train", "--config", settings, "--out", "run", *given)
    assert ran.code == 0, ran.err
    assert recorded().lora == LoraSettings(rank=4, alpha=4), "a rank brings its alpha"
    assert recorded().gradient_accumulation == 1
    assert json.loads(Path("run/run.json").read_text())["base"]["kind"] == "random"
    refusal = run_here(capsys, "train", "--config", settings, "--out", "other", "--from-scratch")
    assert_refused(refusal, "--from-scratch", "my.toml", "[lora]")


def test_a_run_continues_with_the_same_settings_only(settings: str, capsys: Capture) -> None:
    assert run_here(capsys, "train", "--config", settings, "--out", "run").code == 0
    again = ("train", "--config", settings, "--out", "run", "--resume")
    assert run_here(capsys, *again).code == 0
    for option, fact in (
        (("--epochs", "2"), "epochs 1, not 2"),
        (("--rank", "4"), "not 4"),
        (("--precision", "bf16"), "precision fp32, not bf16"),
        (("--compile",), "compile False, not True"),
        (("--text-padding", "longest"), "text_padding fixed, not longest"),
    ):
        assert_refused(run_here(capsys, *again, *option), "run", fact, "--out")
    Path(settings).write_text(Path(settings).read_text().replace("dice = 0.5", "dice = 0.25"))
    assert_refused(run_here(capsys, *again), "dice 0.5, not 0.25")


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("[training]\nepoch = 3", ("[training]", "`epoch`", "epochs, batch_size")),
        ("[train]\nepochs = 3", ("[train]", "training, lora, loss")),
        ("training = 3", ("training", "table")),
        ("[training]\nepochs = 3.5", ("[training] epochs", "3.5", "int")),
        ("[training]\nepochs = true", ("[training] epochs", "True", "int")),
        ("[training]\nepochs = 0", ("[training] epochs", "0", ">= 1")),
        ("[training]\nlearning_rate = nan", ("[training] learning_rate", "nan")),
        ("[lora]\ndropout = 1", ("[lora] dropout", "1")),
        ("[training]\nprecision = 'fp8'", ("[training] precision", "fp8", "auto, fp32, bf16, fp16")),
        ("[model]\npreset = 'x'", ("[model] preset", "'x'", "tiny, s, b, l")),
        ("[model]\ntext_padding = 'x'", ("[model] text_padding", "fixed, longest")),
        ("[weights]\nsam = 3", ("[weights] sam", "3")),
        ("[weights]\nsam = 'x'", ("--sam and --siglip",)),
        ("[training\n", ("TOML",)),
        ("a = " + "[" * 5000, ("TOML",)),
        ("\x00", ("TOML",)),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else None,
)
def test_a_file_with_a_fault_is_refused_by_name(text: str, facts: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text(text)
    with refused(*facts):
        resolve_settings(str(tmp_path / "my.toml"), {})


def test_an_option_with_a_fault_is_refused_by_name() -> None:
    with refused("epochs", ">= 1"):
        resolve_settings(None, {"epochs": 0})
    with refused("--base", "--random-weights"):
        resolve_settings(None, {"base": "x", "random_weights": True})
    with refused("nowhere.toml", "b, l"):
        resolve_settings("nowhere.toml", {})


def test_training_first_reports_trained_parameters(settings: str, capsys: Capture) -> None:
    ran = run_here(capsys, "train", "--config", settings, "--out", "run", "--json")
    report = json.loads(ran.out)
    parts = ("lora_parameters", "attn_prompter_parameters", "sam_decoder_parameters")
    assert all(report[part] > 0 for part in parts)
    assert sum(report[part] for part in parts) == report["trained_parameters"] < report["total_parameters"]
    assert ran.err.index(f"LoRA {report['lora_parameters']:,}") < ran.err.index("effective batch 10 images")
