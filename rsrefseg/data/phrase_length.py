"""How long a phrase is for the model, which cuts off what is too long."""

from collections.abc import Callable
from pathlib import Path

from rsrefseg.engines.text import MAX_PHRASE_CHARACTERS, clean_phrase

from ..checkpoints.tokenizer_file import open_tokenizer

# A token is at least one byte of UTF-8.
_MAX_TOKENS = 4 * MAX_PHRASE_CHARACTERS + 2


def phrase_counter(tokenizer: Path | None = None) -> tuple[Callable[[str], int], str]:
    """How many tokens a phrase has for SigLIP, the end token among them: the function that counts, and what it counts.

    It refuses what the model would refuse. Without a ``tokenizer`` (file or folder) words are counted: each is one
    token or more, so some phrases that are too long may be missed.

    Raises:
        BadInputError: there is no such tokenizer, or it cannot be read.
        MissingPartError: ``spiece.model`` cannot be read here.
    """
    if tokenizer is None:
        counted = "words and the end token; --tokenizer counts SigLIP's own tokens, which are more"
        return lambda phrase: len(clean_phrase(phrase).split()) + 1, counted
    opened = open_tokenizer(tokenizer, _MAX_TOKENS, "longest")
    counted = f"tokens of '{tokenizer}', the end token among them"
    return lambda phrase: int(opened.encode([phrase]).token_mask.sum()), counted
