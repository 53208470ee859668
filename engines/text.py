"""Converts phrases to token ids. Training and inference share this tokenizer, so both read a phrase in one way."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from .errors import BadInputError

if TYPE_CHECKING:
    from tokenizers import Encoding

MAX_PHRASE_CHARACTERS = 1000
TEXT_LENGTH = 64
Padding = Literal["fixed", "longest"]

_QUOTED_CHARACTERS = 40
_WORD_START = "\u2581"  # SentencePiece's mark for a blank before a piece


@dataclass(frozen=True, slots=True, eq=False)
class TokenBatch:
    """The tokens of P phrases.

    Attributes:
        input_ids: (P, L) int64, padded.
        token_mask: (P, L) bool; ``Tokenizer`` describes its meaning for each padding policy.
        warnings: one line for each phrase that was cut or contains unknown words.
    """

    input_ids: npt.NDArray[np.int64]
    token_mask: npt.NDArray[np.bool_]
    warnings: tuple[str, ...] = ()


class Tokenizer:
    """Converts phrases to token arrays of one size by a ``tokenizer.json``. Each phrase is encoded independently.

    Both policies pad to (P, ``length``) arrays; a phrase that is too long loses its last words and keeps its end token.

    - ``fixed``: the training policy of SigLIP. The model attends to every position and pools the last one;
      ``token_mask`` is True on words only (no end, pad or unknown token), for the local average.
    - ``longest``: the published policy for a single phrase. ``token_mask`` is True up to and including the end token:
      the model attends to these positions only, pools the last of them and averages all of them.

    Args:
        path: a ``tokenizer.json`` whose template adds one end token and nothing else.
        length: L, number of tokens of a padded phrase.
        padding: one of the two policies.
        pad_id: id of the padding token; by default the end token, as in SigLIP.

    Raises:
        BadInputError: the file is missing or not such a tokenizer, or an argument is out of range.
    """

    def __init__(
        self, path: Path | str, length: int = TEXT_LENGTH, padding: Padding = "fixed", pad_id: int | None = None
    ) -> None:
        if padding not in get_args(Padding):
            raise BadInputError(f"unknown text padding {padding!r}: use one of {', '.join(get_args(Padding))}")
        if length < 2:
            raise BadInputError(f"text length must be at least 2 tokens, got {length}")
        self.path = Path(path)
        self.length = length
        self.padding = padding
        self._tokenizer = _load(self.path)
        self.end_id = self._find_end_id()
        self.pad_id = self.end_id if pad_id is None else pad_id
        if not 0 <= self.pad_id < self.vocabulary_size:
            raise BadInputError(f"pad id {pad_id} is outside the {self.vocabulary_size} tokens of '{self.path}'")
        self._special_ids = {self.end_id, self.pad_id} | {
            token_id for token_id, token in self._tokenizer.get_added_tokens_decoder().items() if token.special
        }
        self._unknown_id = self._find_unknown_id()

    @property
    def vocabulary_size(self) -> int:
        """Number of token ids, including added ones."""
        return int(self._tokenizer.get_vocab_size())

    def encode(self, phrases: Sequence[str]) -> TokenBatch:
        """Tokenise P phrases.

        Raises:
            BadInputError: there is no phrase, or a phrase is blank, is longer than ``MAX_PHRASE_CHARACTERS``
                characters, or has no word that the tokenizer knows.
        """
        check_phrases(phrases)
        input_ids = np.full((len(phrases), self.length), self.pad_id, dtype=np.int64)
        token_mask = np.zeros((len(phrases), self.length), dtype=np.bool_)
        warnings: list[str] = []
        for row, phrase in enumerate(phrases):
            text = clean_phrase(phrase)
            encoding = self._tokenizer.encode(text)
            ids = encoding.ids
            if len(ids) > self.length:
                kept = self.length - 1
                warnings.append(f"the phrase {quoted(text)} has {len(ids) - 1} tokens: only the first {kept} are used")
                ids = [*ids[:kept], self.end_id]
            words = [self._is_word(token_id) for token_id in ids]
            if not any(words):
                raise BadInputError(f"no known word in the phrase {quoted(text)}: use plain English words")
            if unknown := self._unknown_words(encoding, text):
                warnings.append(f"unknown words in the phrase {quoted(text)} are ignored: {', '.join(unknown)}")
            input_ids[row, : len(ids)] = ids
            token_mask[row, : len(ids)] = True if self.padding == "longest" else words
        return TokenBatch(input_ids, token_mask, tuple(warnings))

    def _is_word(self, token_id: int) -> bool:
        """Return whether a token carries a word: neither special nor unknown, and not a blank only."""
        if token_id in self._special_ids or token_id == self._unknown_id:
            return False
        return bool(str(self._tokenizer.id_to_token(token_id)).strip(_WORD_START + " "))

    def _unknown_words(self, encoding: "Encoding", text: str) -> list[str]:
        spans = [
            span for token_id, span in zip(encoding.ids, encoding.offsets, strict=True) if token_id == self._unknown_id
        ]
        return list(dict.fromkeys(quoted(text[start:stop].strip()) for start, stop in spans))

    def _find_end_id(self) -> int:
        added = self._tokenizer.encode("").ids
        if len(added) != 1 or self._tokenizer.num_special_tokens_to_add(False) != 1:
            raise BadInputError(f"'{self.path}' must add one end token to a phrase and nothing else, but adds {added}")
        return int(added[0])

    def _find_unknown_id(self) -> int | None:
        names = (getattr(self._tokenizer.model, "unk_token", None), "<unk>")
        ids = (self._tokenizer.token_to_id(name) for name in names if name is not None)
        return next((found for found in ids if found is not None), None)


def check_phrases(phrases: Sequence[str]) -> None:
    """Raise ``BadInputError`` for a string in place of a list, and for an empty list."""
    if isinstance(phrases, str):
        raise BadInputError("phrases must be a list of texts, got one text: put it in a list")
    if not phrases:
        raise BadInputError('no phrase given: say what to look for, e.g. "the stadium"')


def clean_phrase(phrase: str) -> str:
    """Return a phrase as the tokenizer reads it: lone surrogates, which UTF-8 cannot encode, become U+FFFD.

    Raises:
        BadInputError: the phrase is not text, is blank, or is longer than ``MAX_PHRASE_CHARACTERS`` characters.
    """
    if not isinstance(phrase, str):
        raise BadInputError(f"a phrase must be text, got {type(phrase).__name__}")
    text = phrase.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if not text.strip():
        raise BadInputError('empty phrase: say what to look for, e.g. "the stadium"')
    if len(text) > MAX_PHRASE_CHARACTERS:
        limit = f"the limit is {MAX_PHRASE_CHARACTERS}"
        raise BadInputError(f"the phrase {quoted(text)} has {len(text)} characters; {limit}: say it in fewer words")
    return text


def quoted(text: str) -> str:
    """Quote a text for a one-line message: shortened, with control characters escaped."""
    return repr(text if len(text) <= _QUOTED_CHARACTERS else text[: _QUOTED_CHARACTERS - 1] + "…")


def _load(path: Path) -> Any:
    from tokenizers import Tokenizer as FastTokenizer

    if not path.is_file():
        raise BadInputError(f"no tokenizer at '{path}'")
    try:
        tokenizer = FastTokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # tokenizers raises bare Exception for every fault of the file
        raise BadInputError(f"'{path}' is not a readable tokenizer.json ({str(error).splitlines()[0]})") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
