"""A very small RSRefSeg and a data set of coloured boxes, for fast training."""

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rsrefseg.data.rrsisd_writer import Referral, write_rrsisd
from rsrefseg.model.config import LoraSettings, ModelConfig, SamConfig, SiglipConfig, TransformerConfig
from rsrefseg.runs.base import BaseWeights, from_file
from rsrefseg.train.config import LossWeights, Precision, TrainConfig
from rsrefseg.train.settings import DataSettings
from rsrefseg.train.train import TrainResult, train
from rsrefseg.train.trainer import StepReport, Watcher

COLOURS = {"red": (220, 40, 30), "blue": (30, 60, 220), "green": (40, 180, 60), "white": (240, 240, 240)}
SIZE = (48, 56)  # unlike the network's square, so that nothing passes unstretched


def small_config(**overrides: Any) -> ModelConfig:
    """Return a small model with all parts of the real one (windowed and global blocks, both neck convolutions)."""
    tower = TransformerConfig(hidden_size=24, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    siglip = SiglipConfig(image_size=64, patch_size=8, vision=tower, text=tower, vocab_size=32, text_length=12)
    sam = SamConfig(
        image_size=64,
        embed_dim=24,
        depth=2,
        num_heads=2,
        global_attn_indexes=(1,),
        window_size=3,
        prompt_channels=32,
        decoder_mlp_dim=32,
        decoder_num_heads=2,
    )
    return ModelConfig(**({"preset": "small", "siglip": siglip, "sam": sam} | overrides))


def small_training(**overrides: Any) -> TrainConfig:
    """Return settings: LoRA with high dropout, two epochs of 5 steps on ``write_boxes``, a checkpoint every other step.

    Both validations have scores above 0 and the second exceeds the first, so each writes a best checkpoint.
    """
    settings: dict[str, Any] = {
        "epochs": 2,
        "batch_size": 2,
        "phrases_per_image": 1,
        "learning_rate": 3e-2,
        "warmup_epochs": 0.0,
        "loss": LossWeights(bce=0.5, dice=4.0),
        "lora": LoraSettings(rank=4, alpha=4, dropout=0.3),
        "precision": Precision.FP32,
        "checkpoint_every_steps": 2,
    }
    return TrainConfig(**(settings | overrides))


def write_boxes(root: Path, train: int = 10, val: int = 2, seed: int = 0, absent: bool = False) -> Path:
    """Write an RRSIS-D folder of dark images, each with two boxes of different colours.

    With ``absent``, each image also has the phrase of a colour that it does not show.
    """
    noise = np.random.default_rng(seed)
    scenes = []
    for split in ["train"] * train + ["val"] * val:
        image = noise.integers(0, 60, (*SIZE, 3), dtype=np.uint8)
        boxes = list(_boxes(image, noise))  # painted into the image
        if absent:
            shown = {box.phrase for box in boxes}
            other = next(phrase for phrase in (f"the {colour} box" for colour in COLOURS) if phrase not in shown)
            boxes.append(Referral(other, "box", np.zeros(SIZE, dtype=np.bool_), has_target=False))
        scenes.append((split, image, boxes))
    write_rrsisd(root, scenes)
    return root


def _boxes(image: np.ndarray, noise: np.random.Generator) -> Iterator[Referral]:
    """Paint one box into each half of ``image``."""
    for left, colour in zip((0, SIZE[1] // 2), noise.permutation(list(COLOURS))[:2], strict=True):
        x, y = left + int(noise.integers(2, 8)), int(noise.integers(2, 20))
        mask = np.zeros(SIZE, dtype=np.bool_)
        mask[y : y + int(noise.integers(10, 24)), x : x + int(noise.integers(8, 18))] = True
        image[mask] = COLOURS[colour]
        yield Referral(f"the {colour} box", "box", mask)


def train_small(
    data: Path | Sequence[Path],
    out: Path,
    base: BaseWeights,
    *,
    resume: bool = False,
    model: ModelConfig | None = None,
    watcher: Watcher | None = None,
    resize_masks: bool = False,
    share: tuple[float, ...] = (),
    drop_shared: bool = False,
    **overrides: Any,
) -> TrainResult:
    """Train a small model; ``overrides`` go to ``small_training``."""
    paths = (data,) if isinstance(data, Path) else tuple(data)
    choice = DataSettings(path=paths, share=share, drop_shared=drop_shared, resize_masks=resize_masks)
    config = small_training(**overrides)
    return train(choice, out, model or small_config(), config, base, resume=resume, watcher=watcher or Watcher())


def train_job(data: str, out: str, base: str, stop_at: int = 0) -> None:
    """Start or continue a small run; ``stop_at`` kills the process after that step."""
    torch.set_num_threads(1)

    def on_step(report: StepReport) -> None:
        if report.step == stop_at:
            os.kill(os.getpid(), signal.SIGKILL)

    train_small(Path(data), Path(out), from_file(Path(base)), resume=True, watcher=Watcher(on_step=on_step))


if __name__ == "__main__":  # for tests of several processes: data, base, then runs as FOLDER:STEP TO STOP AT
    for run_and_stop in sys.argv[3:]:
        folder, stop = run_and_stop.rsplit(":", 1)
        train_job(sys.argv[1], folder, sys.argv[2], stop_at=int(stop))
