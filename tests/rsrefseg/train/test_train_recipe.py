"""Trained parameters, learning rates, loss and batches follow the published recipe."""

import math
import multiprocessing
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from rsrefseg.data.formats import open_dataset
from rsrefseg.data.samples import group_by_image
from rsrefseg.engines.errors import MissingPartError
from rsrefseg.engines.text import Tokenizer
from rsrefseg.model.config import LoraSettings, model_config
from rsrefseg.model.lora import add_lora, train_everything, trainable_parameters
from rsrefseg.model.model import Prediction, RSRefSeg, build_model
from rsrefseg.train.batches import Batch, BatchLoader, EpochBatches, Example, TrainingBatches
from rsrefseg.train.config import LossWeights, TrainConfig
from rsrefseg.train.data import TrainingData
from rsrefseg.train.losses import segmentation_loss
from rsrefseg.train.schedule import WarmupCosine
from tests.support.runs import refused
from tests.support.small import small_config
from tests.support.upstream import randomize

TOWERS, SAM = ("siglip_vision", "siglip_text"), "sam_encoder.image_encoder"
ADAPTED = {
    *(f"{tower}.encoder.layers.0.self_attn.{kind}_proj" for tower in TOWERS for kind in ("q", "k", "v", "out")),
    "siglip_text.head",
    *(f"{SAM}.blocks.{block}.{name}" for block in (0, 1) for name in ("attn.qkv", "attn.proj", "mlp.lin1", "mlp.lin2")),
    f"{SAM}.neck.0",
    f"{SAM}.neck.2",
}
NEVER_REACHED = (
    *(f"sam_decoder.prompt_encoder.{name}" for name in ("point_embeddings.", "not_a_point_embed.", "no_mask")),
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
    names = [name for name, _ in adapted.named_parameters() if not name.startswith(NEVER_REACHED)]
    expected = {name for name in names if ".lora_" in name or name.startswith(("attn_prompter.", "sam_decoder."))}
    assert trained == expected - {"attn_prompter.logit_scale", "attn_prompter.logit_bias"}


def test_from_scratch_everything_a_mask_depends_on_is_trained() -> None:
    model = build_model(small_config())
    train_everything(model)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert all(name.startswith(NEVER_REACHED) for name in frozen)
    assert model.attn_prompter.logit_scale.requires_grad


@pytest.mark.parametrize("dense_prompt", [True, False])
@pytest.mark.parametrize("from_nothing", [True, False])
def test_gradients_reach_all_that_is_trained(dense_prompt: bool, from_nothing: bool) -> None:
    """A trained weight without gradient breaks training on several processes; an excluded one never learns."""
    model = build_model(small_config(dense_prompt=dense_prompt))
    if from_nothing:
        train_everything(model)
    else:
        add_lora(model, LoraSettings(rank=4, alpha=4, dropout=0.0))
        randomize(model)  # lora_B is zero at first, which stops the gradient of its partner
    side = model.config.sam.image_size
    ids = torch.randint(2, 32, (2, 12))
    image = torch.randint(0, 256, (1, 3, side, side), dtype=torch.uint8)
    prediction = model(image, ids, torch.ones_like(ids, dtype=torch.bool))
    prediction.mask_logits.square().sum().backward()
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert reached == set(trainable_parameters(model))


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


WRONG: dict[str, Any] = {"workers": -1, "seed": 2**32, "weight_decay": math.inf, "warmup_start": 1.5}
WRONG |= {"max_grad_norm": 0.0, "lora": {"rank": 0}, "loss": {"dice": -1.0}}


@pytest.mark.parametrize("name", WRONG)
def test_settings_out_of_range_are_refused(name: str) -> None:
    with refused(name):
        TrainConfig.from_dict(TrainConfig().to_dict() | {name: WRONG[name]})


def test_an_epoch_has_every_image_once_in_another_order() -> None:
    batches = EpochBatches(size=10, batch_size=4, seed=1)
    orders = []
    for epoch in range(2):
        batches.epoch, batches.first_batch = epoch, 0
        drawn = list(batches)
        assert [len(batch) for batch in drawn] == [4, 4, 2]
        draws = [draw for batch in drawn for draw in batch]
        assert sorted(draws) == [(image, epoch) for image in range(10)]
        orders.append([image for image, _ in draws])
        batches.first_batch = 1
        assert list(batches) == drawn[1:]
    assert orders[0] != orders[1]


def test_several_processes_share_an_epoch() -> None:
    alone = list(EpochBatches(size=10, batch_size=2, seed=1))
    shares = [list(EpochBatches(10, 2, seed=1, process=process, processes=3)) for process in range(3)]
    # Two rounds; the second is filled with the first batch.
    assert [share[round_] for round_ in range(2) for share in shares] == [*alone, alone[0]]
    resumed = EpochBatches(10, 2, seed=1, process=2, processes=3)
    resumed.first_batch = 1
    assert list(resumed) == shares[2][1:]


@pytest.fixture
def batches(boxes: Path, small_base: Path) -> TrainingBatches:
    """At most one phrase of each image."""
    groups = group_by_image(open_dataset(boxes).split("train"))
    tokenizer = Tokenizer(small_base.with_name("tokenizer.json"), length=12)
    return TrainingBatches(TrainingData(groups, (), tokenizer), small_config(), phrases_per_image=1, seed=0)


def test_phrases_are_drawn_in_each_epoch_and_keep_their_truth(batches: TrainingBatches) -> None:
    group = batches.data.groups[0]
    assert {batches.example((0, epoch)).phrases[0] for epoch in range(12)} == {sample.phrase for sample in group}
    for epoch in range(4):
        example = batches.example((0, epoch))
        assert example.phrases == batches.example((0, epoch)).phrases
        sample = next(sample for sample in group if sample.phrase == example.phrases[0])
        assert example.truth.shape == (1, 64, 64)
        assert example.truth.float().mean().item() == pytest.approx(sample.mask().mean(), rel=0.15)


def test_a_batch_knows_which_phrase_belongs_to_which_image(batches: TrainingBatches) -> None:
    batches.phrases_per_image = 4
    batches.data = replace(batches.data, groups=(batches.data.groups[0][:1], *batches.data.groups[1:]))
    loader = BatchLoader(batches, EpochBatches(10, 3, seed=0), workers=0)
    for batch, draws in zip(loader, EpochBatches(10, 3, seed=0), strict=True):
        examples = [batches.example(draw) for draw in draws]
        phrases = [phrase for example in examples for phrase in example.phrases]
        assert batch.image_index.tolist() == [n for n, example in enumerate(examples) for _ in example.phrases]
        assert np.array_equal(batch.input_ids.numpy(), batches.data.tokenizer.encode(phrases).input_ids)
        assert batch.truth.shape == (len(phrases), 1, 64, 64)
        assert set(batch.truth.unique().tolist()) <= {0.0, 1.0}


def test_workers_stay_from_epoch_to_epoch_and_give_the_same_batches(batches: TrainingBatches) -> None:
    def epochs(workers: int) -> Iterator[Batch]:
        sampler = EpochBatches(10, 3, seed=0)
        loader = BatchLoader(batches, sampler, workers)
        for epoch, first_batch in ((0, 1), (1, 0)):
            sampler.epoch, sampler.first_batch = epoch, first_batch
            yield from loader
            seen.append({child.pid for child in multiprocessing.active_children()})

    seen: list[set[int | None]] = []
    for alone, loaded in zip(epochs(0), epochs(2), strict=True):
        for field in ("image", "truth", "input_ids"):
            assert torch.equal(getattr(alone, field), getattr(loaded, field))
    assert len(seen[1]) == 2
    assert seen[1] == seen[3]


class Unreadable(TrainingBatches):
    """Batches that raise a two-line error, like a broken image."""

    def example(self, draw: tuple[int, int]) -> Example:
        raise MissingPartError(f"BadInputError: other\n{cv2.getNumThreads()} threads of OpenCV")


def test_an_error_keeps_its_class_and_message_on_its_way_from_a_worker(batches: TrainingBatches) -> None:
    """The worker does not use the threads of OpenCV."""
    broken = Unreadable(batches.data, 64, phrases_per_image=1, seed=0)
    for workers, threads in ((0, cv2.getNumThreads()), (1, 1)):
        with pytest.raises(MissingPartError) as error:
            list(BatchLoader(broken, EpochBatches(10, 3, seed=0), workers))
        assert str(error.value) == f"BadInputError: other\n{threads} threads of OpenCV"
