"""Public checkpoints at full size: written by a rebuild, then converted, exported and compared with it."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor, from_numpy

from rsrefseg.engines.segmenter import Segmenter
from rsrefseg.engines.text import Tokenizer
from tests.support.measured import Measured, measured, size_of

# By image: mask logits of the rebuild, (P, 256, 256).
Logits = dict[str, np.ndarray]
TOLERANCE = 1e-4  # of the largest logit


class Converted(NamedTuple):
    """A checkpoint in ``folder``, with its ``run`` and ``bundle``, and the commands that made them."""

    wanted: Logits
    folder: Path
    converting: Measured
    exporting: Measured

    def errors(self, images: dict[str, np.ndarray], phrases: list[str]) -> dict[str, float]:
        """Return by image the largest error of the bundle's mask logits, as a share of the largest logit."""
        errors = {}
        with Segmenter.open(self.folder / "bundle", "onnxruntime") as segmenter:
            for name, image in images.items():
                found = np.stack([one.mask_logits for one in segmenter.segment(image, phrases)])
                wanted = self.wanted[name]
                assert wanted.std() > 1e-3
                errors[name] = float(np.abs(found - wanted).max() / np.abs(wanted).max())
        return errors

    def infer(self, image: np.ndarray, phrases: list[str]) -> Measured:
        """Run ``infer`` on ONNX Runtime."""
        Image.fromarray(image).save(self.folder / "image.png")
        return measured(self.folder, "infer", "image.png", *phrases, "--bundle", "bundle", "--backend", "onnxruntime")

    def summary(self) -> str:
        """Return durations, memory and sizes."""
        commands = {"convert": self.converting, "export": self.exporting}
        parts = [f"{name} {one.wall_s:.0f} s, {one.peak_gib:.2f} GiB" for name, one in commands.items()]
        return f"{', '.join(parts)}, bundle {size_of(self.folder / 'bundle') / 1e9:.2f} GB"


@contextmanager
def converted(write: Callable[[Path], Logits], checkpoint: str, *options: str) -> Iterator[Converted]:
    """Convert and export the ``checkpoint`` that ``write`` writes into a folder; ``options`` go to ``convert``."""
    with tempfile.TemporaryDirectory(prefix="rsrefseg-public-") as name:
        folder = Path(name)
        wanted = write(folder)  # frees the rebuild
        converting = measured(folder, "convert", checkpoint, *options, "--out", "run")
        (folder / checkpoint).unlink()
        yield Converted(wanted, folder, converting, measured(folder, "export", "run", "--out", "bundle"))


def token_ids(tokenizer: Path, phrases: list[str]) -> list[Tensor]:
    """Return the token ids of each phrase, without padding."""
    tokens = Tokenizer(tokenizer, 64, "longest", 0).encode(phrases)
    return [from_numpy(ids[mask]) for ids, mask in zip(tokens.input_ids, tokens.token_mask, strict=True)]
