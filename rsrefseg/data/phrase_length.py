"""Measures the length of phrases, because the model truncates long ones."""

from collections.abc import Callable
from pathlib import Path

from rsrefseg.engines.text import MAX_PHRASE_CHARACTERS, clean_phrase

from ..checkpoints.tokenizer_file import open_tokenizer

# A token is at least one byte of UTF-8.
_MAX_TOKENS = 4 * MAX_PHRASE_CHARACTERS + 2


def phrase_counter(tokenizer: Path | None = None) -> tuple[Callable[[str], int], str]:
    """Return a function that counts the tokens of a phrase, including the end token, and the unit of the count.

    The function raises BadInputError for phrases that the model rejects. Without a ``tokenizer`` (file or folder) it
    counts words: a word is one token or more, so that some long phrases may be missed.

    Raises:
        BadInputError: the tokenizer is missing or cannot be read.
        MissingPartError: ``spiece.model`` cannot be read here.
    """
    if tokenizer is None:
        counted = "words and the end token; --tokenizer counts SigLIP's tokens, which are more"
        return lambda phrase: len(clean_phrase(phrase).split()) + 1, counted
    opened = open_tokenizer(tokenizer, _MAX_TOKENS, "longest")
    counted = f"tokens of '{tokenizer}', including the end token"
    return lambda phrase: int(opened.encode([phrase]).token_mask.sum()), counted
