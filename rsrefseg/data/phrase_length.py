"""How long a phrase is for the model, which cuts off what is too long."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rsrefseg.engines.text import MAX_PHRASE_CHARACTERS, TEXT_LENGTH, clean_phrase

from ..checkpoints.tokenizer_file import open_tokenizer

# A token is at least one byte of UTF-8.
_MAX_TOKENS = 4 * MAX_PHRASE_CHARACTERS + 2


@dataclass(frozen=True, slots=True)
class PhraseRule:
    """What counts as too long: more than ``limit`` of ``unit``. ``count`` refuses what the model would refuse."""

    count: Callable[[str], int]
    limit: int
    unit: str


def phrase_rule(tokenizer: Path | None = None) -> PhraseRule:
    """SigLIP's limit of 64 tokens, the end token among them, counted by a ``tokenizer`` (file or folder).

    Without one, words are counted: each is one token or more, so some phrases that are too long may be missed.

    Raises:
        BadInputError: there is no such tokenizer, or it cannot be read.
        MissingPartError: ``spiece.model`` cannot be read here.
    """
    if tokenizer is None:
        unit = "words and the end token; --tokenizer counts SigLIP's own tokens, which are more"
        return PhraseRule(lambda phrase: len(clean_phrase(phrase).split()) + 1, TEXT_LENGTH, unit)
    opened = open_tokenizer(tokenizer, _MAX_TOKENS, "longest")
    unit = f"tokens of '{tokenizer}', the end token among them"
    return PhraseRule(lambda phrase: int(opened.encode([phrase]).token_mask.sum()), TEXT_LENGTH, unit)
