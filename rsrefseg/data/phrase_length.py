"""How long a phrase is for the model, and from where on its end is cut off."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsrefseg.engines.errors import BadInputError
from rsrefseg.engines.text import TEXT_LENGTH, Tokenizer

_FILES = ("tokenizer.json", "spiece.model")


@dataclass(frozen=True, slots=True)
class PhraseRule:
    """What counts as too long.

    Attributes:
        count: length of a phrase.
        limit: the longest that is read whole.
        unit: what is counted, for the report.
    """

    count: Callable[[str], int]
    limit: int
    unit: str


@dataclass(frozen=True, slots=True)
class PhraseLengths:
    """How long the phrases are for the model.

    Attributes:
        longest: length of the longest.
        limit: the longest that is read whole.
        unit: what was counted.
    """

    longest: int
    limit: int
    unit: str

    def __str__(self) -> str:
        return f"longest phrase: {self.longest} of {self.limit} ({self.unit})"

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"longest": self.longest, "limit": self.limit, "counted": self.unit}


def phrase_rule(tokenizer: Path | None = None) -> PhraseRule:
    """SigLIP's limit of 64 tokens, the end token among them.

    Args:
        tokenizer: ``tokenizer.json`` or ``spiece.model`` of the model to be trained, or the folder with one of them.
            None to count words instead. A word is one token or more, so whatever is found is too long indeed, while
            some phrases of long or rare words may be missed.

    Raises:
        BadInputError: there is no such tokenizer, or it cannot be read.
        MissingPartError: ``spiece.model`` cannot be read here.
    """
    if tokenizer is None:
        unit = "words and the end token; --tokenizer counts SigLIP's own tokens, which are more"
        return PhraseRule(lambda phrase: len(phrase.split()) + 1, TEXT_LENGTH, unit)
    return PhraseRule(_token_counter(tokenizer), TEXT_LENGTH, f"tokens of '{tokenizer}', the end token among them")


def _token_counter(path: Path) -> Callable[[str], int]:
    from tokenizers import Tokenizer as FastTokenizer

    from ..checkpoints.sentencepiece import convert_spiece

    if path.is_dir():
        path = next((path / name for name in _FILES if (path / name).is_file()), path / _FILES[0])
    if not path.is_file():
        raise BadInputError(f"the tokenizer '{path}' does not exist: give a {' or '.join(_FILES)}")
    if path.suffix == ".model":
        fast = convert_spiece(path)
    else:
        Tokenizer(path)  # refuses what is none
        fast = FastTokenizer.from_str(path.read_text(encoding="utf-8"))
        fast.no_padding()
        fast.no_truncation()
    return lambda phrase: len(fast.encode(phrase.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")))
