"""A training run is what its seed makes it, however often it is interrupted; and it refuses what it cannot do well."""

import json
import math
import os
import pickle
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from small import small_config, small_training, train_small, write_boxes

from engines.errors import BadInputError, MissingPartError, RSRefSegError
from engines.text import Tokenizer
from rsrefseg.checkpoint import load_tensors, save_model
from rsrefseg.config import model_config
from rsrefseg.data.rrsisd import IMAGE_FOLDER, INSTANCES_FILE, REFS_FILE
from rsrefseg.data.samples import group_by_image, open_dataset
from rsrefseg.lora import add_lora, train_everything, trainable_parameters
from rsrefseg.model import Prediction, RSRefSeg, build_model
from rsrefseg.train import run as run_module
from rsrefseg.train import trainer as trainer_module
from rsrefseg.train.base import BaseWeights, from_file, from_scratch, shipped
from rsrefseg.train.batches import EpochBatches, TrainingBatches, TrainingImages
from rsrefseg.train.config import LoraSettings, LossWeights, Precision, TrainConfig, from_scratch_config
from rsrefseg.train.losses import segmentation_loss
from rsrefseg.train.metrics_log import read_metrics
from rsrefseg.train.run import Run, latest_run
from rsrefseg.train.schedule import WarmupCosine
from rsrefseg.train.setup import DataChoice, open_tokenizer, read_samples
from rsrefseg.train.trainer import Watcher

pytestmark = pytest.mark.usefixtures("one_thread")

RUN_FILES = {
    ".lock",
    "run.json",
    "tokenizer.json",
    "reference_inputs.safetensors",
    "metrics.jsonl",
    "last.safetensors",
    "best.safetensors",
}


@pytest.fixture(scope="module")
def base(small_base: Path) -> BaseWeights:
    return from_file(small_base)


class StoppedError(Exception):
    """Stands for whatever ends a process."""


def interrupt_at(step: int) -> Watcher:
    """After the optimizer step and its line in the log, before a checkpoint."""

    def on_step(report: Any) -> None:
        if report.step == step:
            raise StoppedError

    return Watcher(on_step=on_step)


def interrupt_at_validation(epoch: int) -> Watcher:
    """After the epoch's last step and validation, before its best weights and checkpoint."""

    def on_validation(done: int, result: Any) -> None:
        if done == epoch:
            raise StoppedError

    return Watcher(on_validation=on_validation)


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


def assert_same_run(found: Path, expected: Path) -> None:
    """Weights, moments, place in training, log and record: every byte of the folder."""
    left, right = contents(found), contents(expected)
    assert left.keys() == right.keys() == RUN_FILES
    assert [name for name in left if left[name] != right[name]] == []


@contextmanager
def refused(*told: str, kind: type[RSRefSegError] = BadInputError) -> Iterator[None]:
    with pytest.raises(kind) as refusal:
        yield
    for part in told:
        assert part in str(refusal.value)
    assert "\n" not in str(refusal.value)


# --- exact resuming -------------------------------------------------------------------------------------------------


def train_to_the_end(data: Path, out: Path, base: BaseWeights, interruptions: list[Watcher], **overrides: Any) -> None:
    for number, watcher in enumerate(interruptions):
        with pytest.raises(StoppedError):
            train_small(data, out, base, resume=number > 0, watcher=watcher, **overrides)
    train_small(data, out, base, resume=True, **overrides)


@pytest.mark.parametrize(
    "interruptions",
    [
        pytest.param([interrupt_at(1)], id="before the first checkpoint"),
        pytest.param([interrupt_at(3)], id="in the middle of an epoch"),
        pytest.param([interrupt_at(5)], id="at the last step of an epoch"),
        pytest.param([interrupt_at_validation(0)], id="between validation and its checkpoint"),
        pytest.param([interrupt_at(6)], id="in the first step of the second epoch"),
        pytest.param([interrupt_at(3), interrupt_at(8), interrupt_at_validation(1)], id="three times"),
    ],
)
def test_an_interrupted_run_ends_with_the_same_bytes(
    boxes: Path, base: BaseWeights, tmp_path: Path, interruptions: list[Watcher]
) -> None:
    train_small(boxes, tmp_path / "whole", base)
    train_to_the_end(boxes, tmp_path / "interrupted", base, interruptions)
    assert_same_run(tmp_path / "interrupted", tmp_path / "whole")


@pytest.mark.parametrize("interruption", [interrupt_at(2), interrupt_at(3), interrupt_at_validation(0)])
def test_resuming_is_exact_with_gradient_accumulation(
    boxes: Path, base: BaseWeights, tmp_path: Path, interruption: Watcher
) -> None:
    """Five batches, two a step: the last step of an epoch has one."""
    options: dict[str, Any] = {"gradient_accumulation": 2, "checkpoint_every_steps": 1, "max_grad_norm": 0.5}
    whole = train_small(boxes, tmp_path / "whole", base, **options)
    assert whole.position.step == 6
    train_to_the_end(boxes, tmp_path / "interrupted", base, [interruption], **options)
    assert_same_run(tmp_path / "interrupted", tmp_path / "whole")


def test_resuming_is_exact_where_the_epochs_end_has_two_checkpoints(
    boxes: Path, base: BaseWeights, tmp_path: Path
) -> None:
    """The one after the last step says nothing of the validation; the log must not tell it twice."""
    train_small(boxes, tmp_path / "whole", base, checkpoint_every_steps=1)
    train_to_the_end(boxes, tmp_path / "interrupted", base, [interrupt_at_validation(0)], checkpoint_every_steps=1)
    assert_same_run(tmp_path / "interrupted", tmp_path / "whole")


def test_resuming_is_exact_from_scratch_and_on_loading_processes(boxes: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"lora": None, "learning_rate": 1e-3}
    train_small(boxes, tmp_path / "whole", from_scratch(), **options)
    train_to_the_end(boxes, tmp_path / "interrupted", from_scratch(), [interrupt_at(3)], **options)
    assert_same_run(tmp_path / "interrupted", tmp_path / "whole")
    train_small(boxes, tmp_path / "workers", from_scratch(), workers=2, **options)
    whole, workers = contents(tmp_path / "whole"), contents(tmp_path / "workers")
    assert whole["last.safetensors"] == workers["last.safetensors"]


def test_a_finished_run_stays_as_it_is(boxes: Path, base: BaseWeights, tmp_path: Path) -> None:
    train_small(boxes, tmp_path / "run", base)
    before = contents(tmp_path / "run")
    result = train_small(boxes, tmp_path / "run", base, resume=True)
    assert result.position.step == 10
    assert contents(tmp_path / "run") == before


def test_a_resumed_run_keeps_the_settings_of_its_record(boxes: Path, base: BaseWeights, tmp_path: Path) -> None:
    train_small(boxes, tmp_path / "whole", base)
    with pytest.raises(StoppedError):
        train_small(boxes, tmp_path / "run", base, watcher=interrupt_at(3))
    train_small(boxes, tmp_path / "run", from_scratch(), resume=True, epochs=9, seed=4, learning_rate=1.0, lora=None)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_resuming_nothing_starts_a_run(boxes: Path, base: BaseWeights, tmp_path: Path) -> None:
    train_small(boxes, tmp_path / "whole", base)
    train_small(boxes, tmp_path / "run", base, resume=True)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_the_seed_decides(boxes: Path, base: BaseWeights, tmp_path: Path) -> None:
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        torch.rand(int(torch.randint(1, 9, ())))  # whatever ran before in this process must not matter
        np.random.rand()
        train_small(boxes, tmp_path / name, base, seed=seed)
    assert_same_run(tmp_path / "again", tmp_path / "first")
    assert contents(tmp_path / "first")["best.safetensors"] != contents(tmp_path / "other")["best.safetensors"]


def test_dropout_is_on_and_differs_from_batch_to_batch(boxes: Path, base: BaseWeights, tmp_path: Path) -> None:
    """Otherwise the tests of exact resuming would not see a wrong random state."""
    for name, dropout in (("with", 0.3), ("without", 0.0)):
        train_small(boxes, tmp_path / name, base, lora=LoraSettings(rank=4, alpha=4, dropout=dropout))
    assert contents(tmp_path / "with")["last.safetensors"] != contents(tmp_path / "without")["last.safetensors"]


# --- what is trained ------------------------------------------------------------------------------------------------

ADAPTED = {
    *(f"siglip_vision.encoder.layers.0.self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "out_proj")),
    *(f"siglip_text.encoder.layers.0.self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "out_proj")),
    "siglip_text.head",
    *(
        f"sam_encoder.image_encoder.blocks.{block}.{name}"
        for block in (0, 1)
        for name in ("attn.qkv", "attn.proj", "mlp.lin1", "mlp.lin2")
    ),
    "sam_encoder.image_encoder.neck.0",
    "sam_encoder.image_encoder.neck.2",
}
NEVER_REACHED = (
    "sam_decoder.prompt_encoder.point_embeddings.",
    "sam_decoder.prompt_encoder.not_a_point_embed.",
    "sam_decoder.mask_decoder.iou_prediction_head.",
    *(f"sam_decoder.mask_decoder.output_hypernetworks_mlps.{number}." for number in (1, 2, 3)),
)


@pytest.fixture
def adapted() -> RSRefSeg:
    model = build_model(small_config())
    add_lora(model, LoraSettings(rank=4, alpha=8, dropout=0.0))
    return model


def test_adapters_sit_on_exactly_the_published_modules(adapted: RSRefSeg) -> None:
    names = {name.rpartition(".lora_A")[0] for name, _ in adapted.named_parameters() if ".lora_A." in name}
    assert names == ADAPTED
    scalings = {module.scaling["default"] for module in adapted.modules() if hasattr(module, "lora_A")}
    assert scalings == {2.0}  # alpha over rank


@pytest.mark.parametrize("preset", ["tiny", "b", "l"])
def test_the_presets_have_the_published_number_of_adapters(preset: str) -> None:
    config = model_config(preset)
    model = build_model(config, device="meta")
    with torch.device("meta"):
        add_lora(model, LoraSettings())
    count = sum(".lora_A." in name for name, _ in model.named_parameters())
    layers = config.siglip.vision.num_hidden_layers + config.siglip.text.num_hidden_layers
    assert count == 4 * layers + 1 + 4 * config.sam.depth + 2


def test_with_lora_adapters_prompter_and_decoder_are_trained_and_nothing_else(adapted: RSRefSeg) -> None:
    trained = set(trainable_parameters(adapted))
    expected = {
        name
        for name, _ in adapted.named_parameters()
        if ".lora_" in name or name.startswith(("attn_prompter.", "sam_decoder."))
    }
    expected -= {"attn_prompter.logit_scale", "attn_prompter.logit_bias"}
    expected -= {name for name in expected if name.startswith((*NEVER_REACHED, "sam_decoder.prompt_encoder.no_mask"))}
    assert trained == expected


def test_from_scratch_everything_a_mask_depends_on_is_trained() -> None:
    model = build_model(small_config())
    train_everything(model)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert all(name.startswith((*NEVER_REACHED, "sam_decoder.prompt_encoder.no_mask")) for name in frozen)
    assert model.attn_prompter.logit_scale.requires_grad


@pytest.mark.parametrize("dense_prompt", [True, False])
@pytest.mark.parametrize("from_nothing", [True, False])
def test_gradients_reach_all_that_is_trained(dense_prompt: bool, from_nothing: bool) -> None:
    """A trained weight without gradient would break training on several processes; one left out would never learn."""
    model = build_model(small_config(dense_prompt=dense_prompt))
    if from_nothing:
        train_everything(model)
    else:
        add_lora(model, LoraSettings(rank=4, alpha=4, dropout=0.0))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if ".lora_B." in name:  # zero at first, which stops the gradient of its partner
                    parameter.normal_(std=0.1)
    side = model.config.sam.image_size
    ids = torch.randint(2, 32, (2, 12), generator=torch.Generator().manual_seed(0))
    image = torch.randint(0, 256, (1, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    prediction = model(image, ids, torch.ones_like(ids, dtype=torch.bool))
    prediction.mask_logits.square().sum().backward()
    missing = {name for name, parameter in trainable_parameters(model).items() if parameter.grad is None}
    assert missing == set()
    extra = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert extra == set(trainable_parameters(model))


def test_training_changes_what_is_trained_only(boxes: Path, base: BaseWeights, tmp_path: Path) -> None:
    run = train_small(boxes, tmp_path / "run", base, weight_decay=0.1).run
    start = load_tensors(Path(base.path or "")).tensors
    best = load_tensors(run.best_path).tensors
    assert "attn_prompter.logit_scale" not in best
    changed = [name for name in best if name in start and not torch.equal(best[name], start[name])]
    assert "attn_prompter.down_channel.conv.weight" in changed
    assert "attn_prompter.down_channel.bn.running_mean" in changed
    assert all(name.startswith(("attn_prompter.", "sam_decoder.")) or ".lora_" in name for name in best)


# --- the recipe -----------------------------------------------------------------------------------------------------


def test_the_published_recipe_is_the_default() -> None:
    config = TrainConfig()
    assert config.lora == LoraSettings(rank=16, alpha=16, dropout=0.1)
    assert (config.learning_rate, config.weight_decay, config.epochs) == (1e-4, 0.05, 200)
    assert (config.warmup_epochs, config.warmup_start, config.final_share) == (5, 0.01, 0.001)
    assert config.loss == LossWeights(bce=5, dice=0, coarse=0)


def test_the_learning_rate_rises_linearly_and_falls_as_half_a_cosine() -> None:
    share = WarmupCosine(warmup_steps=10, total_steps=110, start=0.01, final=0.001)
    assert share(0) == 0.01
    assert share(5) == pytest.approx((0.01 + 1) / 2)
    assert share(10) == 1
    assert share(60) == pytest.approx((1 + 0.001) / 2)
    assert share(85) == pytest.approx(0.001 + 0.999 * (1 + math.cos(0.75 * math.pi)) / 2)
    assert share(110) == pytest.approx(0.001)
    assert share(500) == pytest.approx(0.001)
    assert WarmupCosine(0, 10, 0.01, 0.001)(0) == 1
    assert WarmupCosine(10, 5, 0.01, 0.001)(4) == pytest.approx(0.01 + 0.99 * 0.4)


def test_the_log_tells_the_rates_that_were_used(boxes: Path, base: BaseWeights, tmp_path: Path) -> None:
    run = train_small(boxes, tmp_path / "run", base, warmup_epochs=0.4, learning_rate=0.5e-2).run
    steps = [entry for entry in read_metrics(run.metrics_path) if "loss" in entry]
    share = WarmupCosine(warmup_steps=2, total_steps=10, start=0.01, final=0.001)
    assert [entry["step"] for entry in steps] == list(range(1, 11))
    assert [entry["epoch"] for entry in steps] == [0] * 5 + [1] * 5
    assert [entry["learning_rate"] for entry in steps] == [0.5e-2 * share(step) for step in range(10)]


def test_the_loss_is_cross_entropy_at_the_images_size() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 1, 8, 8, generator=generator)
    truth = (torch.rand(3, 1, 32, 32, generator=generator) > 0.5).float()
    probability = torch.nn.functional.interpolate(logits, size=(32, 32), mode="bilinear").sigmoid().double()
    entropy = -(truth * probability.log() + (1 - truth) * (1 - probability).log()).mean()
    loss = segmentation_loss(Prediction(logits, logits), truth, LossWeights(bce=5.0))
    assert loss.item() == pytest.approx(5 * entropy.item(), rel=1e-5)


def test_dice_and_coarse_terms_are_added_by_weight() -> None:
    truth = torch.zeros(2, 1, 16, 16)
    truth[:, :, :8] = 1
    perfect = torch.where(truth[:, :, ::4, ::4] > 0, 40.0, -40.0)
    prediction = Prediction(torch.nn.functional.interpolate(perfect, scale_factor=2), perfect)

    def loss(**weights: float) -> float:
        return segmentation_loss(prediction, truth, LossWeights(**({"bce": 0.0} | weights))).item()

    assert loss(coarse=1.0) == pytest.approx(0, abs=1e-6)
    # Two of the sixteen rows lie between the halves after upsampling: nearly nothing of the Dice is lost.
    assert loss(dice=2.0) == pytest.approx(2 * loss(dice=1.0))
    assert 0 <= loss(dice=1.0) < 0.05
    wrong = Prediction(-prediction.mask_logits, -perfect)
    assert segmentation_loss(wrong, truth, LossWeights(bce=0, dice=1)).item() > 0.9


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"epochs": 0}, "epochs"),
        ({"batch_size": 0}, "batch_size"),
        ({"checkpoint_every_steps": 0}, "checkpoint_every_steps"),
        ({"workers": -1}, "workers"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**32}, "seed"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"learning_rate": math.nan}, "learning_rate"),
        ({"weight_decay": math.inf}, "weight_decay"),
        ({"warmup_start": 1.5}, "warmup_start"),
        ({"max_grad_norm": 0.0}, "max_grad_norm"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], told: str) -> None:
    with refused(told):
        TrainConfig(**settings)


def test_adapters_and_losses_out_of_range_are_refused() -> None:
    with refused("rank"):
        LoraSettings(rank=0)
    with refused("dropout"):
        LoraSettings(dropout=1.0)
    with refused("dice"):
        LossWeights(dice=-1.0)


def test_settings_survive_their_plain_form() -> None:
    for config in (TrainConfig(), from_scratch_config(seed=3), small_training()):
        assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with refused("colour"):
        TrainConfig.from_dict(TrainConfig().to_dict() | {"colour": 1})
    with refused("loss"):
        TrainConfig.from_dict({"lora": None})


# --- batches --------------------------------------------------------------------------------------------------------


def test_an_epoch_shows_every_image_once_in_an_order_of_its_own() -> None:
    batches = EpochBatches(size=10, batch_size=4, seed=1)
    orders = []
    for epoch in range(2):
        batches.epoch = epoch
        drawn = list(batches)
        assert [len(batch) for batch in drawn] == [4, 4, 2]
        assert {draw[1] for batch in drawn for draw in batch} == {epoch}
        orders.append([draw[0] for batch in drawn for draw in batch])
        assert sorted(orders[-1]) == list(range(10))
        batches.first_batch = 1
        assert list(batches) == drawn[1:]
        batches.first_batch = 0
    assert orders[0] != orders[1]


def test_several_processes_share_an_epoch() -> None:
    alone = list(EpochBatches(size=10, batch_size=2, seed=1))
    shares = [list(EpochBatches(10, 2, seed=1, process=process, processes=3)) for process in range(3)]
    assert [len(share) for share in shares] == [2, 2, 2]
    taken = [share[round_] for round_ in range(2) for share in shares]
    assert taken[:5] == alone
    assert taken[5] == alone[0]  # the round is filled up from the start
    resumed = EpochBatches(10, 2, seed=1, process=2, processes=3)
    resumed.first_batch = 1
    assert list(resumed) == shares[2][1:]


def test_phrases_are_drawn_anew_in_each_epoch_and_keep_their_truth(boxes: Path) -> None:
    groups = group_by_image(open_dataset(boxes).split("train"))
    images = TrainingImages(groups, 64, phrases_per_image=1, seed=0, on_size_mismatch="refuse")
    seen = {images[(0, epoch)].phrases[0] for epoch in range(12)}
    assert seen == {sample.phrase for sample in groups[0]}
    for epoch in range(4):
        example = images[(0, epoch)]
        assert example.phrases == images[(0, epoch)].phrases
        sample = next(sample for sample in groups[0] if sample.phrase == example.phrases[0])
        assert example.truth.shape == (1, 64, 64)
        assert example.truth.float().mean().item() == pytest.approx(sample.mask().mean(), rel=0.15)


def test_a_batch_knows_which_phrase_belongs_to_which_image(boxes: Path, small_base: Path) -> None:
    groups = group_by_image(open_dataset(boxes).split("train"))
    groups = (groups[0][:1], *groups[1:])  # one image with a single phrase
    images = TrainingImages(groups, 64, phrases_per_image=4, seed=0, on_size_mismatch="refuse")
    tokenizer = Tokenizer(small_base.with_name("tokenizer.json"), length=12)
    for batch, draws in zip(
        TrainingBatches(images, EpochBatches(10, 3, seed=0), tokenizer, 0), EpochBatches(10, 3, seed=0), strict=True
    ):
        examples = [images[draw] for draw in draws]
        phrases = [phrase for example in examples for phrase in example.phrases]
        owners = [number for number, example in enumerate(examples) for _ in example.phrases]
        assert batch.image_index.tolist() == owners
        assert np.array_equal(batch.input_ids.numpy(), tokenizer.encode(phrases).input_ids)
        assert batch.truth.shape == (len(phrases), 1, 64, 64)
        assert set(batch.truth.unique().tolist()) <= {0.0, 1.0}


# --- what a run folder holds ----------------------------------------------------------------------------------------


def test_best_is_of_the_best_validation_and_last_of_the_end(boxes: Path, base: BaseWeights, tmp_path: Path) -> None:
    scores = iter([0.2, 0.6, 0.4])

    def fake_validation(*_: Any, **__: Any) -> Any:
        from rsrefseg.metrics import MetricsResult, Protocol

        return MetricsResult(Protocol.RSREFSEG, 1, next(scores), 0.0, {}, {})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_module, "evaluate", fake_validation)
        result = train_small(boxes, tmp_path / "run", base, epochs=3)
    assert result.position.best_giou == 0.6
    assert load_tensors(result.run.best_path).header["step"] == 10
    last = load_tensors(result.run.last_path)
    assert last.header["position"] == {"epoch": 3, "batch": 0, "step": 15, "best_giou": 0.6}
    name = "attn_prompter.down_channel.conv.weight"
    assert not torch.equal(load_tensors(result.run.best_path).tensors[name], last.tensors["weight." + name])


def test_validation_comes_when_asked_and_at_the_end(boxes: Path, base: BaseWeights, tmp_path: Path) -> None:
    run = train_small(boxes, tmp_path / "run", base, epochs=3, validate_every_epochs=2).run
    validations = [entry for entry in read_metrics(run.metrics_path) if "validation" in entry]
    assert [entry["epoch"] for entry in validations] == [1, 2]
    assert {"gIoU", "cIoU", "Pr@0.5", "Pr@0.6", "Pr@0.7", "Pr@0.8", "Pr@0.9"} <= validations[0]["validation"].keys()


def test_without_validation_the_best_is_the_last(boxes: Path, base: BaseWeights, tmp_path: Path) -> None:
    from rsrefseg.train.entry import train

    choice = DataChoice(boxes, validation_split=None)
    result = train(choice, tmp_path / "run", small_config(), small_training(), base)
    assert load_tensors(result.run.best_path).header["step"] == result.position.step == 10
    assert result.position.best_giou == -1


def test_the_log_is_cut_back_to_the_checkpoint(boxes: Path, base: BaseWeights, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    with pytest.raises(StoppedError):
        train_small(boxes, run.path, base, watcher=interrupt_at(5))
    assert [entry["step"] for entry in read_metrics(run.metrics_path)] == [1, 2, 3, 4, 5]
    with run.metrics_path.open("a", encoding="utf-8") as stream:
        stream.write('{"step": 3, "lo')  # cut off in the middle of a line
    with pytest.raises(StoppedError):
        train_small(boxes, run.path, base, resume=True, watcher=interrupt_at(5))
    assert [entry["step"] for entry in read_metrics(run.metrics_path)] == [1, 2, 3, 4, 5]


def test_the_record_tells_how_the_run_was_made(boxes: Path, base: BaseWeights, tmp_path: Path) -> None:
    result = train_small(boxes, tmp_path / "run", base)
    record = result.run.read_record()
    assert TrainConfig.from_dict(record["train"]) == small_training()
    assert record["base"] == base.to_dict()
    assert record["parameters"] == {"trained": result.trained_parameters, "total": result.total_parameters}
    assert 0 < result.trained_parameters < result.total_parameters


def test_files_can_be_read_by_others(boxes: Path, base: BaseWeights, tmp_path: Path) -> None:
    run = train_small(boxes, tmp_path / "run", base).run
    modes = {path.name: path.stat().st_mode & 0o777 for path in run.path.iterdir()}
    assert set(modes.values()) == {modes["run.json"]}


def test_the_latest_run_is_the_newest_record(tmp_path: Path) -> None:
    with refused("runs", "rsrefseg train"):
        latest_run(tmp_path / "runs")


# --- refusals -------------------------------------------------------------------------------------------------------


def test_an_existing_run_is_not_overwritten(boxes: Path, base: BaseWeights, tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        train_small(boxes, tmp_path / "run", base, watcher=interrupt_at(1))
    before = contents(tmp_path / "run")
    with refused("already holds a run", "--resume"):
        train_small(boxes, tmp_path / "run", base)
    assert contents(tmp_path / "run") == before


def test_weights_without_a_record_are_not_taken_for_this_runs(boxes: Path, base: BaseWeights, tmp_path: Path) -> None:
    run = train_small(boxes, tmp_path / "run", base).run
    run.record_path.unlink()
    for resume in (True, False):
        with refused("last.safetensors", "run.json", "--out"):
            train_small(boxes, run.path, base, resume=resume)


@pytest.fixture
def interrupted(boxes: Path, base: BaseWeights, tmp_path: Path) -> Run:
    with pytest.raises(StoppedError):
        train_small(boxes, tmp_path / "run", base, watcher=interrupt_at(3))
    return Run(tmp_path / "run")


def edit_annotations(root: Path, change: Callable[[list[dict[str, Any]], dict[str, Any]], None]) -> None:
    """Apply ``change`` to the refs and instances of an RRSIS-D folder."""
    folder = root / "rrsisd"
    refs = pickle.loads((folder / REFS_FILE).read_bytes())
    instances = json.loads((folder / INSTANCES_FILE).read_text())
    change(refs, instances)
    (folder / REFS_FILE).write_bytes(pickle.dumps(refs, protocol=2))
    (folder / INSTANCES_FILE).write_text(json.dumps(instances))


def other_phrase(refs: list[dict[str, Any]], instances: dict[str, Any]) -> None:
    refs[0]["sentences"][0]["sent"] = "the other box"


def other_mask(refs: list[dict[str, Any]], instances: dict[str, Any]) -> None:
    first, second = instances["annotations"][:2]
    first["segmentation"], second["segmentation"] = second["segmentation"], first["segmentation"]


def one_sample_less(refs: list[dict[str, Any]], instances: dict[str, Any]) -> None:
    del refs[3]


def another_border_between_splits(refs: list[dict[str, Any]], instances: dict[str, Any]) -> None:
    for ref in [ref for ref in refs if ref["split"] == "train"][-2:]:
        ref["split"] = "val"


@pytest.mark.parametrize("change", [other_phrase, other_mask, one_sample_less, another_border_between_splits])
def test_data_that_changed_under_a_run_is_refused(
    interrupted: Run, base: BaseWeights, tmp_path: Path, change: Callable[..., None]
) -> None:
    data = write_boxes(tmp_path / "changed")
    edit_annotations(data, change)
    with refused("changed", "not the data", "annotations differ"):
        train_small(data, interrupted.path, base, resume=True)


def test_the_same_data_elsewhere_is_accepted(interrupted: Run, boxes: Path, base: BaseWeights, tmp_path: Path) -> None:
    train_small(boxes, tmp_path / "whole", base)
    train_small(write_boxes(tmp_path / "moved"), interrupted.path, base, resume=True)
    assert_same_run(interrupted.path, tmp_path / "whole")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def overwrite(path: Path) -> None:
    path.write_text("not a tensor")


@pytest.mark.parametrize("damage", [cut, empty, overwrite])
@pytest.mark.parametrize("name", ["last.safetensors", "run.json", "tokenizer.json"])
def test_a_damaged_file_is_refused_by_name(
    interrupted: Run, boxes: Path, base: BaseWeights, name: str, damage: Callable[[Path], None]
) -> None:
    damage(interrupted.path / name)
    with refused(name):
        train_small(boxes, interrupted.path, base, resume=True)


def test_another_file_in_the_checkpoints_place_is_refused(interrupted: Run, boxes: Path, base: BaseWeights) -> None:
    interrupted.reference_inputs_path.rename(interrupted.last_path)
    with refused("last.safetensors", "no training state"):
        train_small(boxes, interrupted.path, base, resume=True)


def test_a_checkpoint_of_another_model_is_refused(
    interrupted: Run, boxes: Path, base: BaseWeights, tmp_path: Path
) -> None:
    other = train_small(boxes, tmp_path / "other", base, lora=LoraSettings(rank=2, alpha=2)).run
    other.last_path.rename(interrupted.last_path)
    with refused("last.safetensors", "lora_A", "shape"):
        train_small(boxes, interrupted.path, base, resume=True)


@pytest.mark.parametrize("part", ["model", "train", "base", "data"])
def test_a_record_that_lacks_a_part_is_refused(interrupted: Run, boxes: Path, base: BaseWeights, part: str) -> None:
    record = interrupted.read_record()
    del record[part]
    interrupted.write_record(record)
    with refused("run.json", part):
        train_small(boxes, interrupted.path, base, resume=True)


def test_masks_of_other_sizes_are_refused_or_resized_on_request(base: BaseWeights, tmp_path: Path) -> None:
    data = write_boxes(tmp_path / "data")
    image = data / IMAGE_FOLDER / "00003.jpg"
    Image.open(image).resize((28, 24)).save(image)
    with refused("00003.jpg", "48x56", "24x28", "--resize-masks"):
        train_small(data, tmp_path / "run", base)
    with pytest.raises(StoppedError):
        train_small(data, tmp_path / "run", base, resize_masks=True, watcher=interrupt_at(3))
    # The choice is the run's: it need not be made again.
    train_small(data, tmp_path / "run", base, resume=True)


def test_a_picture_on_its_side_is_compared_as_it_is_seen(tmp_path: Path) -> None:
    data = write_boxes(tmp_path / "data")
    path = data / IMAGE_FOLDER / "00001.jpg"
    upright = Image.open(path)
    lying = upright.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to see it
    lying.save(path, exif=exif)
    assert Image.open(path).size == (48, 56)
    train, _ = read_samples(DataChoice(data))
    assert train[0].mask_size == (48, 56)


def test_broken_data_is_refused_before_the_first_step(base: BaseWeights, tmp_path: Path) -> None:
    data = write_boxes(tmp_path / "data")
    image = data / IMAGE_FOLDER / "00002.jpg"
    whole = image.read_bytes()
    image.write_bytes(b"no picture")
    with refused("00002.jpg"):
        train_small(data, tmp_path / "run", base)
    image.unlink()
    with refused("00002.jpg", "missing"):
        train_small(data, tmp_path / "run", base)
    image.write_bytes(whole)
    edit_annotations(data, lambda refs, _: refs[0]["sentences"][0].update(sent="zzz 123 qqq"))
    with refused("sample", "no known word"):
        train_small(data, tmp_path / "run", base)
    assert not Run(tmp_path / "run").record_path.exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_breaks_off_is_one_line_from_any_process(base: BaseWeights, tmp_path: Path, workers: int) -> None:
    data = write_boxes(tmp_path / "data")
    image = data / IMAGE_FOLDER / "00007.jpg"
    image.write_bytes(image.read_bytes()[:700])  # the header is whole
    with refused(f"the JPEG file '{image}' is corrupt or cut short"):
        train_small(data, tmp_path / "run", base, workers=workers)


def test_phrases_not_read_in_full_are_told(base: BaseWeights, tmp_path: Path) -> None:
    data = write_boxes(tmp_path / "data")
    edit_annotations(data, lambda refs, _: refs[0]["sentences"][0].update(sent="the purple box " + "red " * 20))
    notes: list[str] = []
    with pytest.raises(StoppedError):
        train_small(
            data, tmp_path / "run", base, watcher=Watcher(on_step=interrupt_at(1).on_step, on_note=notes.append)
        )
    assert len(notes) == 1
    assert "purple" in notes[0]


def test_a_loss_that_is_not_finite_ends_the_run_in_one_line(boxes: Path, base: BaseWeights, tmp_path: Path) -> None:
    with refused("no longer finite", "--learning-rate", "--precision fp32", kind=RSRefSegError):
        train_small(boxes, tmp_path / "run", base, learning_rate=1e30)


def test_a_base_of_other_sizes_is_refused(boxes: Path, base: BaseWeights, tmp_path: Path) -> None:
    with refused("small", "tiny", "--base"):
        train_small(boxes, tmp_path / "run", base, model=model_config("tiny"))


@pytest.mark.parametrize("options", [{"text_padding": "longest"}, {"dense_prompt": False}])
def test_a_base_serves_another_padding_and_other_prompts(
    boxes: Path, base: BaseWeights, tmp_path: Path, options: dict[str, Any]
) -> None:
    asked = small_config(**options)
    model = base.build(asked, seed=0)
    assert model.config == asked
    start = load_tensors(Path(base.path or "")).tensors
    assert all(torch.equal(tensor, start[name]) for name, tensor in model.state_dict().items())
    train_small(boxes, tmp_path / "run", base, model=asked, epochs=1)


def test_a_base_that_changed_since_is_refused(boxes: Path, tmp_path: Path, small_base: Path) -> None:
    path = tmp_path / "base.safetensors"
    path.write_bytes(small_base.read_bytes())
    path.with_name("tokenizer.json").write_bytes(small_base.with_name("tokenizer.json").read_bytes())
    own = from_file(path)
    with pytest.raises(StoppedError):
        train_small(boxes, tmp_path / "run", own, watcher=interrupt_at(1))
    save_model(path, build_model(small_config(), seed=9))
    with refused("base.safetensors", "SHA-256"):
        train_small(boxes, tmp_path / "run", own, resume=True)
    path.unlink()
    with refused("base.safetensors"):
        train_small(boxes, tmp_path / "run", own, resume=True)


def test_a_base_needs_its_tokenizer(boxes: Path, tmp_path: Path, small_base: Path) -> None:
    path = tmp_path / "alone.safetensors"
    path.write_bytes(small_base.read_bytes())
    with refused("alone.safetensors", "--tokenizer"):
        train_small(boxes, tmp_path / "run", from_file(path))
    with refused("gone.safetensors"):
        from_file(tmp_path / "gone.safetensors")
    with refused("preset 'b'", "--base", kind=MissingPartError):
        shipped("b")


def test_a_tokenizer_with_too_many_words_is_refused(interrupted: Run) -> None:
    config = small_config()
    assert open_tokenizer(interrupted, config).vocabulary_size <= config.siglip.vocab_size
    siglip = config.to_dict()["siglip"] | {"vocab_size": 3}
    tight = type(config).from_dict(config.to_dict() | {"siglip": siglip})
    with refused("tokenizer.json", "3"):
        open_tokenizer(interrupted, tight)


def test_an_output_that_cannot_be_a_folder_is_refused(boxes: Path, base: BaseWeights, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with refused("file"):
        train_small(boxes, tmp_path / "file" / "run", base)


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(
    interrupted: Run, boxes: Path, base: BaseWeights
) -> None:
    before = interrupted.last_path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        with refused("last.safetensors", "could not be written", "File too large"):
            train_small(boxes, interrupted.path, base, resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert interrupted.last_path.read_bytes() == before
    train_small(boxes, interrupted.path, base, resume=True)


def test_two_trainings_never_share_a_folder(
    interrupted: Run, boxes: Path, base: BaseWeights, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "_HOLD_SECONDS", 0.0)
    with interrupted.held(), refused("another process", "--out"):
        train_small(boxes, interrupted.path, base, resume=True)
    train_small(boxes, interrupted.path, base, resume=True)


def test_two_processes_train_one_model(boxes: Path, small_base: Path, tmp_path: Path) -> None:
    """Each takes every other batch, one writes; killed and started again they end where they would have."""

    def launch(*runs: str) -> int:
        processes = ["--standalone", "--nproc-per-node", "2", "--no-python", sys.executable]
        job = [str(Path(__file__).with_name("small.py")), str(boxes), str(small_base), *runs]
        environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "torch.distributed.run", *processes, *job]
        return subprocess.run(command, env=environment, capture_output=True, check=False).returncode

    assert launch(f"{tmp_path}/whole:0", f"{tmp_path}/interrupted:3") != 0
    assert launch(f"{tmp_path}/interrupted:0") == 0
    assert_same_run(tmp_path / "interrupted", tmp_path / "whole")
    entries = read_metrics(tmp_path / "whole" / "metrics.jsonl")
    assert [entry["step"] for entry in entries if "loss" in entry] == [1, 2, 3, 4, 5, 6]


def test_half_precision_needs_a_device_that_has_it(boxes: Path, base: BaseWeights, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine trains in fp16")
    with refused("fp16", "CUDA"):
        train_small(boxes, tmp_path / "run", base, precision=Precision.FP16)


def test_one_process_can_train_in_two_precisions(boxes: Path, base: BaseWeights, tmp_path: Path) -> None:
    for name, precision in (("bf16", Precision.BF16), ("fp32", Precision.FP32)):
        train_small(boxes, tmp_path / name, base, precision=precision, epochs=1)
    left, right = (load_tensors(tmp_path / name / "best.safetensors").tensors for name in ("bf16", "fp32"))
    assert all(tensor.dtype != torch.bfloat16 for tensor in left.values())
    assert any(not torch.equal(left[name], right[name]) for name in left)


def test_checkpoints_hold_tensors_and_json_only(interrupted: Run) -> None:
    for path in interrupted.path.glob("*.safetensors"):
        with safe_open(path, framework="pt") as stream:
            assert json.loads(stream.metadata()["rsrefseg"])["schema_version"] == 1
