"""Phrases become the same tokens in training and serving, whatever people type."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as FastTokenizer

from rsrefseg.engines.errors import BadInputError
from rsrefseg.engines.text import MAX_PHRASE_CHARACTERS, Tokenizer, clean_phrase
from rsrefseg.model.tokenizer import build_word_tokenizer

PHRASES = ("the large red stadium on the left", "a small blue ship in the harbour", "two storage tanks near the bridge")
PIECES = [*["▁the", "▁a", "▁ship", "▁stadium", "▁red", "▁large"], *"stadiumerph▁"]


def word_level(path: Path) -> Path:
    """The kind the tiny preset ships: word level, end token pads."""
    build_word_tokenizer(PHRASES, vocab_size=64).save(str(path))
    return path


def unigram(path: Path) -> Path:
    """The kind SigLIP ships: SentencePiece unigram with ``<pad>`` 0, ``</s>`` 1, ``<unk>`` 2, padded with ``</s>``."""
    specials = ["<pad>", "</s>", "<unk>"]
    scores = [(token, 0.0) for token in specials] + [(piece, -1.0 - n / 10) for n, piece in enumerate(PIECES)]
    tokenizer = FastTokenizer(models.Unigram(scores, unk_id=2))
    tokenizer.add_special_tokens(specials)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Replace(Regex(r"[!-/:-@\[-`{-~]"), ""), normalizers.Strip()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="module", params=[word_level, unigram])
def tokenizer_file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return request.param(tmp_path_factory.mktemp("tokenizer") / "tokenizer.json")


@pytest.fixture
def words(tmp_path: Path) -> Path:
    return word_level(tmp_path / "tokenizer.json")


WORDS = "the Large RED stadium, ships ship. </s> <unk> <pad> e\u0301 \u202eship שמאל الميناء 🚢 👩‍👩‍👧 ﬁeld İ ß \uff11"
ODD = [*WORDS.split(), "  ", "\n", "\t", "\x00", "\ud800", "\u3000"]
odd_word = st.one_of(st.sampled_from(ODD), st.text(max_size=5))
odd_text = st.one_of(st.text(max_size=60), st.lists(odd_word, max_size=90).map(" ".join))


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
@given(phrase=odd_text)
def test_ids_equal_the_training_library_on_odd_text(tokenizer_file: Path, phrase: str) -> None:
    ours, theirs = readers(tokenizer_file)
    try:
        batch = ours.encode([phrase])
    except BadInputError:
        if phrase.strip() and len(phrase) <= MAX_PHRASE_CHARACTERS:  # then no word may be left to look for
            ids = theirs(clean_phrase(phrase), truncation=True, max_length=64)["input_ids"]
            left = [token for token in theirs.convert_ids_to_tokens(ids) if token.strip("▁")]
            assert set(left) <= {"<pad>", "</s>", "<unk>"}
        return
    expected = theirs(clean_phrase(phrase), padding="max_length", truncation=True, max_length=64)["input_ids"]
    assert batch.input_ids[0].tolist() == expected


@functools.cache
def readers(path: Path) -> tuple:
    """The same file read by this project and by transformers, with SigLIP's special tokens."""
    from transformers import PreTrainedTokenizerFast

    specials = {"pad_token": "</s>", "eos_token": "</s>", "unk_token": "<unk>"}
    options = {"tokenizer_file": str(path), "clean_up_tokenization_spaces": False}
    return Tokenizer(path), PreTrainedTokenizerFast(**specials, **options)


def test_padding_marks_real_words_or_all_up_to_the_end_token(words: Path) -> None:
    tokenizer = Tokenizer(words)
    batch = tokenizer.encode(["the red zeppelin"])
    assert batch.input_ids.shape == batch.token_mask.shape == (1, 64)
    assert (batch.input_ids.dtype, batch.token_mask.dtype) == (np.int64, np.bool_)
    assert batch.token_mask[0].tolist() == [True, True, False] + [False] * 61
    assert (batch.input_ids[0, 3:] == tokenizer.end_id).all()
    batch = Tokenizer(words, padding="longest").encode(["the red zeppelin"])
    assert batch.token_mask[0].tolist() == [True] * 4 + [False] * 60


@pytest.mark.parametrize("padding", ["fixed", "longest"])
def test_a_phrase_does_not_depend_on_its_neighbours(tokenizer_file: Path, padding: str) -> None:
    tokenizer = Tokenizer(tokenizer_file, padding=padding)
    phrases = ["the ship", "the large red stadium " * 5, "red"]
    together = tokenizer.encode(phrases)
    for row, phrase in enumerate(phrases):
        alone = tokenizer.encode([phrase])
        assert np.array_equal(together.input_ids[row], alone.input_ids[0])
        assert np.array_equal(together.token_mask[row], alone.token_mask[0])


def test_pad_id_is_the_callers(tokenizer_file: Path) -> None:
    batch = Tokenizer(tokenizer_file, pad_id=0).encode(["the ship"])
    row = batch.input_ids[0].tolist()
    assert row[row.index(1) + 1 :] == [0] * (63 - row.index(1))


def test_a_long_phrase_is_cut_with_a_warning_and_keeps_its_end_token(tokenizer_file: Path) -> None:
    tokenizer = Tokenizer(tokenizer_file)
    batch = tokenizer.encode(["the " * 100, "the " * 63])
    assert batch.input_ids[0].tolist() == batch.input_ids[1].tolist()
    assert batch.input_ids[0, -1] == tokenizer.end_id
    assert batch.token_mask[0].tolist() == [True] * 63 + [False]
    assert len(batch.warnings) == 1
    assert "has 100 tokens" in batch.warnings[0]


def test_unknown_words_are_named(words: Path) -> None:
    (warning,) = Tokenizer(words).encode(["the red ship", "the zeppelin near 🚢 the Quay, zeppelin"]).warnings
    assert warning.endswith(": 'zeppelin', '🚢', 'Quay'")


@pytest.mark.parametrize(
    ("phrases", "fact"),
    [
        ([""], "empty phrase"),
        ([" \t\n\u3000 "], "empty phrase"),
        (["the ship " * 600], "has 5400 characters; the limit is 1000"),
        *((["the ship", phrase], "no known word") for phrase in ("🚢🚢", "...", "</s>", "\ud800", "\x00")),
        ([], "no phrase"),
        ("the ship", "list of texts"),
        ([3], "must be text"),
    ],
)
def test_phrases_that_cannot_be_used_are_refused_in_one_line(tokenizer_file: Path, phrases: Any, fact: str) -> None:
    with pytest.raises(BadInputError, match=fact) as refusal:
        Tokenizer(tokenizer_file).encode(phrases)
    assert "\n" not in str(refusal.value)
    str(refusal.value).encode("utf-8")


def test_a_phrase_is_cleaned_before_it_is_counted(words: Path) -> None:
    assert clean_phrase("a \ud83d\udea2 b \udc80") == "a 🚢 b \ufffd"
    assert Tokenizer(words).encode(["ship".ljust(MAX_PHRASE_CHARACTERS, "!")]).token_mask.sum() == 1


@pytest.mark.parametrize("content", [None, "{}", "no json", "without an end token"])
def test_a_file_that_is_not_such_a_tokenizer_is_refused(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    if content == "without an end token":
        FastTokenizer(models.WordLevel({"<unk>": 0, "ship": 1}, unk_token="<unk>")).save(str(path))
    elif content is not None:
        path.write_text(content)
    with pytest.raises(BadInputError, match=str(path)):
        Tokenizer(path)


def test_settings_out_of_range_are_refused(words: Path) -> None:
    for wrong in ({"padding": "max"}, {"length": 1}, {"pad_id": 10_000}, {"pad_id": -1}):
        with pytest.raises(BadInputError):
            Tokenizer(words, **wrong)


def test_padding_and_truncation_stored_in_the_file_do_not_count(tmp_path: Path) -> None:
    tokenizer = build_word_tokenizer(PHRASES, vocab_size=64)
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=5)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer(tmp_path / "tokenizer.json").encode(["the large red ship"]).token_mask[0].sum() == 4
