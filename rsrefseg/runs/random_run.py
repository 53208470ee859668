"""A run of random weights: the right sizes and times, and masks that mean nothing."""

from pathlib import Path

from ..checkpoints.tokenizer_file import tokenizer_bytes
from ..model.config import ModelConfig
from .base import random_weights
from .imported_run import check_new, made_scenes, reference_inputs, write_brought_run
from .run import Run
from .tokenizer import word_tokenizer


def make_random_run(out: Path, config: ModelConfig, seed: int = 0, tokenizer: Path | None = None) -> Run:
    """Write a run that can be exported and measured, stamped as random.

    Args:
        out: new or empty folder.
        config: what to build.
        seed: decides the weights.
        tokenizer: SigLIP's; without one, words of rendered scenes.

    Raises:
        BadInputError: the folder is not empty, or the tokenizer does not fit.
        RSRefSegError: the folder cannot be written.
    """
    check_new(out)
    base = random_weights()
    if tokenizer is not None:
        content = tokenizer_bytes(tokenizer, config)
    else:
        phrases = [referral.phrase for scene in made_scenes() for referral in scene.referrals]
        content = word_tokenizer(phrases, config)
    inputs = reference_inputs(None, config.sam.image_size)
    header = {"random_weights": True, "merge": {"adapters": 0}, "source": {"base": base.to_dict(), "seed": seed}}
    return write_brought_run(out, base.build(config, seed), base, content, inputs, header)
