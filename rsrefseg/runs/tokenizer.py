"""Selects and opens the tokenizer of a run."""

from collections.abc import Iterable
from pathlib import Path

from rsrefseg.engines.errors import BadInputError
from rsrefseg.engines.text import Tokenizer

from ..checkpoints.tokenizer_file import tokenizer_bytes
from ..model.config import ModelConfig
from ..model.tokenizer import build_word_tokenizer
from .base import BaseKind, BaseWeights, shipped_tokenizer
from .run import Run


def tokenizer_for(base: BaseWeights, given: Path | None, config: ModelConfig, phrases: Iterable[str]) -> bytes:
    """Return the content of ``tokenizer.json`` for a training.

    Args:
        base: initial weights, which may include a tokenizer.
        given: tokenizer file or folder to use instead.
        config: model whose vocabulary the tokenizer must fit.
        phrases: phrases to build a tokenizer from if there is no other.

    Raises:
        BadInputError: the base's tokenizer is missing, or the tokenizer cannot be read or does not fit.
    """
    if given is None and base.kind is BaseKind.SHIPPED:
        given = shipped_tokenizer()
    elif given is None and base.files is not None:
        given = Path(base.files.siglip.path)
    elif given is None and base.kind is BaseKind.FILE:
        given = Path(base.path or "").with_name("tokenizer.json")
        if not given.is_file():
            raise BadInputError(f"no tokenizer.json in the folder of '{base.path}': give a tokenizer with --tokenizer")
    return tokenizer_bytes(given, config) if given else word_tokenizer(phrases, config)


def word_tokenizer(phrases: Iterable[str], config: ModelConfig) -> bytes:
    """Return the content of a ``tokenizer.json`` built from the words of ``phrases``."""
    return build_word_tokenizer(phrases, config.siglip.vocab_size).to_str(pretty=True).encode() + b"\n"


def open_tokenizer(run: Run, config: ModelConfig) -> Tokenizer:
    """Open the run's tokenizer.

    Raises:
        BadInputError: the tokenizer is missing or damaged, or its vocabulary is larger than the model's.
    """
    siglip = config.siglip
    tokenizer = Tokenizer(run.tokenizer_path, siglip.text_length, config.text_padding, siglip.pad_token_id)
    if tokenizer.vocabulary_size > siglip.vocab_size:
        raise BadInputError(
            f"'{run.tokenizer_path}' has {tokenizer.vocabulary_size} tokens, the model {siglip.vocab_size}: "
            "give the tokenizer that belongs to these weights"
        )
    return tokenizer
