"""Gradient checkpointing, accumulation and half precision need less memory for the same step."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from msgspec.structs import replace
from torch import Tensor
from torch.nn import functional as F

from rsrefseg.checkpoints.model_file import load_tensors
from rsrefseg.model.config import LoraSettings, TransformerConfig
from rsrefseg.model.lora import add_lora, trainable_parameters
from rsrefseg.model.model import RSRefSeg, build_model
from rsrefseg.runs.base import BaseWeights
from rsrefseg.train import checkpointing
from rsrefseg.train import trainer as trainer_module
from rsrefseg.train.checkpointing import checkpoint_blocks, transformer_blocks
from rsrefseg.train.config import Precision
from rsrefseg.train.metrics_log import read_metrics
from rsrefseg.train.schedule import WarmupCosine
from tests.support import runs
from tests.support.runs import STEADY, StoppedError, assert_same_run, interrupt_at, losses, write_uneven_boxes
from tests.support.small import small_config, train_small
from tests.support.upstream import randomize


def deep_model(checkpointed: bool) -> RSRefSeg:
    """Return a narrow model with eight layers per tower and adapters with dropout."""
    tower = TransformerConfig(24, 48, num_hidden_layers=8, num_attention_heads=2)
    small = small_config()
    siglip = replace(small.siglip, vision=tower, text=tower)
    sam = replace(small.sam, image_size=128, depth=8, global_attn_indexes=(3, 7))
    model = build_model(replace(small, siglip=siglip, sam=sam), seed=3)
    add_lora(model, LoraSettings(rank=4, alpha=4, dropout=0.3))
    randomize(model)  # lora_B is zero at first, which hides its partner's gradient
    if checkpointed:
        checkpoint_blocks(model)
    return model.train()


def kept_bytes(work: Callable[[], Tensor]) -> tuple[Tensor, int]:
    """Return the result of ``work`` and the bytes of tensors saved for the backward pass."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = work()
    return result, sum(kept.values())


def loss_of(model: RSRefSeg) -> Tensor:
    draw = torch.Generator().manual_seed(5)
    image = torch.randint(0, 256, (2, 3, 128, 128), dtype=torch.uint8, generator=draw)
    ids = torch.randint(2, 32, (3, 12), generator=draw)
    torch.manual_seed(6)
    prediction = model(image, ids, torch.ones_like(ids, dtype=torch.bool), torch.tensor([0, 0, 1]))
    return prediction.mask_logits.square().mean()


def test_checkpointing_keeps_little_and_changes_no_bit() -> None:
    plain, checkpointed = deep_model(False), deep_model(True)
    assert len(transformer_blocks(plain)) == 24
    assert plain.state_dict().keys() == checkpointed.state_dict().keys()
    (left, all_bytes), (right, few_bytes) = (kept_bytes(lambda m=model: loss_of(m)) for model in (plain, checkpointed))
    assert torch.equal(left, right)
    assert few_bytes < 0.3 * all_bytes, (few_bytes, all_bytes)
    left.backward()
    right.backward()
    found = {name: parameter.grad for name, parameter in trainable_parameters(checkpointed).items()}
    for name, parameter in trainable_parameters(plain).items():
        assert parameter.grad is not None
        assert torch.equal(found[name], parameter.grad), name


@pytest.mark.parametrize("max_weights", [1, 3 * 64**2])
def test_attention_a_few_heads_at_a_time_changes_rounding_only(
    max_weights: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One head at a time in all blocks; or three of four, in the global blocks."""
    found = []
    for limit in (1 << 25, max_weights):
        monkeypatch.setattr(checkpointing, "_MAX_WEIGHTS", limit)
        model = deep_model(True)
        loss = loss_of(model)
        loss.backward()
        found.append((loss, {name: parameter.grad for name, parameter in trainable_parameters(model).items()}))
    (loss, gradients), (loss_in_parts, gradients_in_parts) = found
    torch.testing.assert_close(loss_in_parts, loss, rtol=1e-6, atol=0)
    for name, gradient in gradients.items():
        if "sam_encoder" in name:  # the gradient of other biases is zero but for rounding
            assert gradient is not None
            # Products of one matrix and of several round differently, by 1e-7 in each of sixteen products.
            tolerance = 1e-5 * float(gradient.abs().max())
            torch.testing.assert_close(gradients_in_parts[name], gradient, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("precision", "steps"), [(Precision.BF16, 10), (Precision.FP32, 20)])
def test_a_checkpointed_training_has_the_same_losses_and_weights(
    boxes: Path, base: BaseWeights, tmp_path: Path, precision: Precision, steps: int
) -> None:
    for name, on in (("plain", False), ("checkpointed", True)):
        options: dict[str, Any] = {"gradient_checkpointing": on, "precision": precision, "epochs": steps // 5}
        run = train_small(boxes, tmp_path / name, base, **options).run
        assert len(losses(run.path)) == steps
    for file in ("last.safetensors", "best.safetensors", "metrics.jsonl"):
        assert (tmp_path / "plain" / file).read_bytes() == (tmp_path / "checkpointed" / file).read_bytes()


def fixed_statistics(norm: torch.nn.BatchNorm2d, x: Tensor) -> Tensor:
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, training=False)


def test_two_accumulated_batches_are_one_large_but_for_batch_statistics(base: BaseWeights, tmp_path: Path) -> None:
    """Each phrase has the same weight in batches of three or four phrases. Only batch norm differs."""
    data = write_uneven_boxes(tmp_path / "data")

    def found(name: str, **options: int) -> list[float]:
        return losses(train_small(data, tmp_path / name, base, **STEADY | options).run.path)

    large, accumulated = {"batch_size": 4}, {"batch_size": 2, "gradient_accumulation": 2}
    assert found("one", **accumulated) != pytest.approx(found("two", **large), rel=runs.LOSS_TOLERANCE)
    with patch.object(torch.nn.BatchNorm2d, "forward", fixed_statistics):
        expected = found("four", **large, epochs=7)
        assert len(expected) == 21
        assert found("three", **accumulated, epochs=7) == pytest.approx(expected, rel=runs.LOSS_TOLERANCE)


class ScaledOnCpu(trainer_module.Accelerator):
    """Double of a CUDA device: float32 arithmetic with a float16 loss scaler whose first factors overflow."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=4)


@patch.object(trainer_module, "Accelerator", ScaledOnCpu)
def test_a_step_that_overflowed_never_moves_weights(boxes: Path, base: BaseWeights, tmp_path: Path) -> None:
    options: dict[str, Any] = {"warmup_epochs": 0.4, "checkpoint_every_steps": 1, "max_grad_norm": 1.0}
    run = train_small(boxes, tmp_path / "whole", base, **options).run
    steps = [entry for entry in read_metrics(run.metrics_path) if "loss" in entry]
    skipped = [entry["step"] for entry in steps if entry.get("skipped")]
    assert skipped[0] == 1
    assert 1 < len(skipped) < 10
    share = WarmupCosine(warmup_steps=2, total_steps=10, start=0.01, final=0.001)
    assert [entry["learning_rate"] for entry in steps] == [3e-2 * share(step) for step in range(10)]
    with pytest.raises(StoppedError):
        train_small(boxes, tmp_path / "first", base, watcher=interrupt_at(2), **options)
    start, first = load_tensors(Path(base.path or "")).tensors, load_tensors(tmp_path / "first" / "last.safetensors")
    name = "attn_prompter.down_channel.conv.weight"
    assert torch.equal(first.tensors[f"weight.{name}"], start[name])
    assert first.header["scaler"]["scale"] == 2.0**126
    train_small(boxes, tmp_path / "first", base, resume=True)
    assert_same_run(tmp_path / "first", tmp_path / "whole")
