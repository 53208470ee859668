"""A tokenizer of whole words, as a file."""

from collections.abc import Iterable
from pathlib import Path

from rsrefseg.model.tokenizer import build_word_tokenizer


def write_word_tokenizer(path: Path, phrases: Iterable[str], vocab_size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    build_word_tokenizer(phrases, vocab_size).save(str(path))
