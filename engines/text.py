"""From phrases to token ids. Training and serving share this tokenizer, so they never read a phrase differently."""

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
    """Tokens of P phrases.

    Attributes:
        input_ids: (P, L) int64, padded.
        token_mask: (P, L) bool; see ``Tokenizer`` for what is True.
        warnings: one line for each phrase that was cut or holds unknown words.
    """

    input_ids: npt.NDArray[np.int64]
    token_mask: npt.NDArray[np.bool_]
    warnings: tuple[str, ...] = ()


class Tokenizer:
    """Turns phrases into token batches of one size, by a ``tokenizer.json``. A phrase never depends on its neighbours.

    Both policies give (P, ``length``) arrays; a phrase that is too long loses its last words and keeps its end token.

    - ``fixed``: SigLIP's own training policy. Every position is attended and the last one pooled; ``token_mask`` is
      True on real words only (no end, pad or unknown token), for the local average.
    - ``longest``: the published policy for a phrase that stands alone. ``token_mask`` is True up to and including the
      end token: only these are attended, the last of them is pooled, all are averaged.

    Args:
        path: a ``tokenizer.json`` whose template adds one end token and nothing else.
        length: L, tokens of a padded phrase.
        padding: one of the two policies.
        pad_id: the id that fills up a phrase; default is the end token, which is what SigLIP pads with.

    Raises:
        BadInputError: the file is missing or no such tokenizer, or an argument is out of range.
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
        """Number of token ids, added ones included."""
        return int(self._tokenizer.get_vocab_size())

    def encode(self, phrases: Sequence[str]) -> TokenBatch:
        """Tokens of ``phrases``.

        Raises:
            BadInputError: no phrase at all, or a phrase that is blank, longer than ``MAX_PHRASE_CHARACTERS``
                characters, or without any word the tokenizer knows.
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
        """Whether a token carries a word: not special, not unknown, and more than a bare blank."""
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
    """Raise ``BadInputError`` for a single text and for an empty list."""
    if isinstance(phrases, str):
        raise BadInputError("phrases must be a list of texts, got one text: put it in a list")
    if not phrases:
        raise BadInputError('no phrase given: say what to look for, e.g. "the stadium"')


def clean_phrase(phrase: str) -> str:
    """The phrase as it is tokenized: lone surrogates, which no UTF-8 text can hold, become U+FFFD.

    Raises:
        BadInputError: the phrase is no text, blank, or longer than ``MAX_PHRASE_CHARACTERS`` characters.
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
    """A text for a one-line message: shortened, control characters escaped."""
    return repr(text if len(text) <= _QUOTED_CHARACTERS else text[: _QUOTED_CHARACTERS - 1] + "…")


def _load(path: Path) -> Any:
    from tokenizers import Tokenizer as FastTokenizer

    if not path.is_file():
        raise BadInputError(f"no tokenizer at '{path}'")
    try:
        tokenizer = FastTokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the Rust side raises bare Exception for every fault of the file
        raise BadInputError(f"'{path}' is not a readable tokenizer.json ({str(error).splitlines()[0]})") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
