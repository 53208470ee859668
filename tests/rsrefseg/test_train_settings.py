"""Settings from a file, a shipped recipe or the command line: who wins, what is recorded, what is refused."""

import json
import tomllib
from pathlib import Path

import pytest

from rsrefseg.model.config import LoraSettings
from rsrefseg.train import command as command_module
from rsrefseg.train.config import LossWeights, TrainConfig
from rsrefseg.train.config_file import read_config_file
from rsrefseg.train.request import TrainRequest
from tests.support.commands import assert_refused, run_here
from tests.support.runs import refused
from tests.support.small import small_config

pytestmark = pytest.mark.usefixtures("one_thread")
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
    """A file of settings for a small run; every preset is the small model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command_module, "model_config", lambda preset: small_config())
    Path("my.toml").write_text(SETTINGS.format(data=boxes, base=small_base))
    return "my.toml"


def recorded(run: str = "run") -> TrainConfig:
    return TrainConfig.from_dict(json.loads(Path(run, "run.json").read_text())["train"])


# --- the shipped recipes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["b", "l"])
def test_the_shipped_recipes_state_the_published_values(preset: str) -> None:
    recipe = read_config_file(preset)
    assert recipe.model["preset"] == preset
    config = TrainRequest(config=preset).filled().train_config()
    assert config.lora == LoraSettings(rank=16, alpha=16, dropout=0.1)
    assert config.loss == LossWeights(bce=5.0)
    assert (config.epochs, config.learning_rate, config.weight_decay) == (200, 1e-4, 0.05)
    assert (config.warmup_epochs, config.warmup_start, config.final_share) == (5, 0.01, 0.001)
    assert 8 <= config.batch_size * config.gradient_accumulation <= 32
    assert config.gradient_checkpointing


@pytest.mark.parametrize("preset", ["b", "l"])
def test_every_value_of_a_recipe_says_whose_it_is(preset: str) -> None:
    from rsrefseg.train import config_file as module

    text = (Path(module.__file__).parent / "recipes" / f"{preset}.toml").read_text()
    values = [line for line in text.splitlines() if "=" in line.partition("#")[0]]
    assert len(values) == sum(len(table) for table in tomllib.loads(text).values())
    for line in values:
        assert line.partition("# ")[2].startswith(("published", "ours")), line


def test_a_recipe_without_weights_says_all_that_is_missing(tmp_path: Path, capsys: Capture) -> None:
    told = ("--data", "preset 'b'", "--sam and --siglip", "--base")
    assert_refused(run_here(capsys, "train", "--config", "b"), *told)
    assert_refused(run_here(capsys, "train", "--config", "l", "--data", tmp_path), "preset 'l'", "--sam and --siglip")
    assert_refused(run_here(capsys, "train", "--preset", "b", "--data", tmp_path), "preset 'b'", "--sam and --siglip")


# --- a file of one's own --------------------------------------------------------------------------------------------


def test_a_file_settles_what_no_option_does(settings: str, capsys: Capture) -> None:
    ran = run_here(capsys, "train", "--config", settings, "--out", "run", "--learning-rate", "1e-3", "--seed", "7")
    assert ran.code == 0, ran.err
    config = recorded()
    assert (config.epochs, config.batch_size, config.gradient_accumulation) == (1, 5, 2)
    assert (config.learning_rate, config.seed) == (1e-3, 7)
    assert config.lora == LoraSettings(rank=2, alpha=8)
    assert config.loss == LossWeights(bce=1, dice=0.5)
    assert config.weight_decay == TrainConfig().weight_decay


def test_the_rank_given_as_an_option_brings_its_alpha(settings: str, capsys: Capture) -> None:
    run_here(capsys, "train", "--config", settings, "--out", "run", "--rank", "4", "--accumulation-steps", "1")
    assert recorded().lora == LoraSettings(rank=4, alpha=4)
    assert recorded().gradient_accumulation == 1


def test_weights_given_as_an_option_replace_those_of_the_file(settings: str, boxes: Path, capsys: Capture) -> None:
    ran = run_here(capsys, "train", "--config", settings, "--out", "run", "--random-weights")
    assert ran.code == 0, ran.err
    assert json.loads(Path("run/run.json").read_text())["base"]["kind"] == "random"
    refusal = run_here(capsys, "train", "--config", settings, "--out", "other", "--from-scratch")
    assert_refused(refusal, "--from-scratch", "my.toml", "[lora]")


def test_a_run_goes_on_under_the_same_settings_and_no_others(settings: str, capsys: Capture) -> None:
    assert run_here(capsys, "train", "--config", settings, "--out", "run").code == 0
    again = ("train", "--config", settings, "--out", "run", "--resume")
    assert run_here(capsys, *again).code == 0
    for option, told in (
        (("--epochs", "2"), "epochs 1, not 2"),
        (("--rank", "4"), "rank 2, not 4"),
        (("--precision", "bf16"), "precision fp32, not bf16"),
        (("--gradient-checkpointing",), "gradient_checkpointing False, not True"),
        (("--text-padding", "longest"), "text_padding fixed, not longest"),
    ):
        assert_refused(run_here(capsys, *again, *option), "'run' was started with", told, "another --out")
    Path(settings).write_text(Path(settings).read_text().replace("dice = 0.5", "dice = 0.25"))
    assert_refused(run_here(capsys, *again), "dice 0.5, not 0.25")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[training]\nepoch = 3", ("[training] epoch is no setting", "epochs, batch_size")),
        ("[lora]\nranks = 3", ("[lora] ranks is no setting", "rank, alpha, dropout")),
        ("[train]\nepochs = 3", ("unknown table [train]", "[training], [lora], [loss]")),
        ("training = 3", ("'training' must be a table",)),
        ("[training]\nepochs = 3.5", ("[training] epochs must be a whole number, not 3.5",)),
        ("[training]\nepochs = true", ("[training] epochs must be a whole number, not True",)),
        ("[training]\nlearning_rate = 'fast'", ("[training] learning_rate must be a number, not 'fast'",)),
        ("[training]\ngradient_checkpointing = 1", ("gradient_checkpointing must be true or false, not 1",)),
        ("[training]\nepochs = 0", ("[training] epochs must be at least 1, not 0",)),
        ("[training]\nlearning_rate = nan", ("learning_rate must be positive, not nan",)),
        ("[lora]\ndropout = 1", ("[lora] LoRA dropout must lie in [0, 1), not 1",)),
        ("[loss]\nbce = -1", ("[loss] bce must be at least 0, not -1",)),
        ("[training]\nprecision = 'fp8'", ("[training] precision is 'fp8': allowed are auto, fp32, bf16, fp16",)),
        ("[model]\npreset = 'x'", ("[model] preset is 'x': allowed are tiny, b, l",)),
        ("[model]\ntext_padding = 'x'", ("allowed are fixed, longest",)),
        ("[weights]\nsam = 3", ("[weights] sam must be a text, not 3",)),
        ("[training\n", ("is no TOML file",)),
        ("a = " + "[" * 5000, ("is no TOML file",)),
        ("x = 1\n" * 300_000, ("larger than any file of settings",)),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else None,
)
def test_a_file_with_a_fault_is_refused_by_name(
    text: str, told: tuple[str, ...], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my.toml").write_text(text)
    assert_refused(run_here(capsys, "train", "--data", "x", "--config", "my.toml"), "'my.toml'", *told)


def test_a_file_that_is_not_there_or_no_text_is_refused(tmp_path: Path) -> None:
    with refused("nowhere.toml", "b, l"):
        read_config_file(str(tmp_path / "nowhere.toml"))
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with refused("binary.toml", "no TOML file"):
        read_config_file(str(tmp_path / "binary.toml"))


# --- what is told ---------------------------------------------------------------------------------------------------


def test_training_says_first_what_it_trains(settings: str, capsys: Capture) -> None:
    ran = run_here(capsys, "train", "--config", settings, "--out", "run", "--json")
    report = json.loads(ran.out)
    parts = ("lora_parameters", "attn_prompter_parameters", "sam_decoder_parameters")
    assert all(report[part] > 0 for part in parts)
    assert sum(report[part] for part in parts) == report["trained_parameters"] < report["total_parameters"]
    lines = ran.err.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("trains "))
    assert f"LoRA {report['lora_parameters']:,}" in lines[first]
    assert f"AttnPrompter {report['attn_prompter_parameters']:,}" in lines[first]
    assert "effective batch 10 images (5 at once x 2 accumulated)" in lines[first + 1]
    assert not any("loss" in line for line in lines[:first])
