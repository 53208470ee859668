"""A converted spiece.model encodes every phrase as the published tokenizer does."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from tokenizers import Tokenizer as FastTokenizer
from transformers.convert_slow_tokenizer import import_protobuf

from rsrefseg.checkpoints.tokenizer_file import convert_spiece, open_tokenizer, tokenizer_bytes
from rsrefseg.engines.errors import BadInputError
from rsrefseg.engines.text import Tokenizer
from tests.support.runs import refused
from tests.support.upstream import PHRASES, brought_config
from tests.support.words import write_word_tokenizer

CONFIG = brought_config()
VOCABULARY = """
    the a white red large small airplane ship boat bridge storage tank on left right side of harbor image stadium near
    vehicle two three 12 345 ships bridges toll station golf course windmill chimney dam tennis track field café naïve
"""
TEXTS = (
    *PHRASES,
    "The WHITE Airplane!!",
    "  a   ship,  on-the left. ",
    "ship's (dock) [red] {a} ~ ^ `x` \\ | = + * # @ % & _ ;:",
    "- ship",
    "naïve CAFÉ",
    "象形文字 ship 象",
    "the ship\ton\nthe left",
    "\u2581ship a \u2581 b",
    "\ufb01eld of x² \uff11\uff12 ships\u2014bridge",
    "unknownword zzzqqq e\u0301 cafe\u0301",
    "\u00a0ship\u00a0on\u3000red\u200bx",
    "the 3rd ship @ left $5",
    "...",
)


def made_model(path: Path, **changes: Any) -> Path:
    """Build a unigram model without a trainer."""
    model = import_protobuf().ModelProto()
    pieces = [("<pad>", 0.0, 3), ("</s>", 0.0, 3), ("<unk>", 0.0, 2)]
    pieces += [("▁the", -2.0, 1), ("▁sh", -3.0, 1), ("ip", -3.0, 1), ("▁ship", -5.0, 1), ("▁", -4.0, 1)]
    pieces += [(letter, -9.0, 1) for letter in "abcdefghijklmnopqrstuvwxyz"]
    for piece, score, kind in pieces:
        model.pieces.add(piece=piece, score=score, type=kind)
    model.trainer_spec.model_type = changes.get("model_type", 1)
    model.trainer_spec.unk_id = changes.get("unk_id", 2)
    model.normalizer_spec.precompiled_charsmap = changes.get("charsmap", b"")
    if changes.get("without_end"):
        model.pieces[1].piece = "end"
    path.write_bytes(model.SerializeToString())
    return path


def test_text_is_canonicalised_and_split_by_score(tmp_path: Path) -> None:
    tokenizer = convert_spiece(made_model(tmp_path / "spiece.model"))
    assert tokenizer.encode("The Ship!").ids == [3, 6, 1], "one piece of score -5 beats two of -3"
    assert tokenizer.encode("the,   ships").tokens == ["▁the", "▁ship", "s", "</s>"]
    assert tokenizer.encode("the 99").ids == [3, 7, 2, 1], "what it does not know is one unknown token"
    assert tokenizer.encode("").ids == [1]


@pytest.mark.parametrize("rule", ["nmt_nfkc", "nmt_nfkc_cf", "identity"])
@pytest.mark.parametrize("collapse", [True, False])
def test_every_phrase_is_read_as_by_the_published_tokenizer(tmp_path: Path, rule: str, collapse: bool) -> None:
    trainer = pytest.importorskip("sentencepiece").SentencePieceTrainer
    from transformers import SiglipTokenizer

    choose = random.Random(0)
    words = VOCABULARY.split()
    lines = [" ".join(choose.choices(words, k=choose.randint(3, 9))) for _ in range(400)]
    options = {"normalization_rule_name": rule, "remove_extra_whitespaces": collapse, "minloglevel": 2}
    ids = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    with (tmp_path / "spiece.model").open("wb") as stream:
        trainer.train(sentence_iterator=iter(lines), model_writer=stream, vocab_size=72, **options, **ids)
    published = SiglipTokenizer(str(tmp_path / "spiece.model"))
    fast = FastTokenizer.from_str(convert_spiece(tmp_path / "spiece.model").to_str())
    for phrase in (*TEXTS, *lines[:50], *(line.title() for line in lines[50:100])):
        assert fast.encode(phrase).ids == published(phrase)["input_ids"], phrase
    assert published.pad_token_id == published.eos_token_id == fast.token_to_id("</s>") == 1


def test_a_folder_brings_its_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"neither tokenizer\.json nor spiece\.model"):
        tokenizer_bytes(tmp_path, CONFIG)
    model = made_model(tmp_path / "spiece.model")
    big = replace(CONFIG, siglip=replace(CONFIG.siglip, vocab_size=40))
    for path in (tmp_path, model):
        (tmp_path / "made").mkdir(exist_ok=True)
        (tmp_path / "made" / "tokenizer.json").write_bytes(tokenizer_bytes(path, big))
        tokens = Tokenizer(tmp_path / "made" / "tokenizer.json", 12, "longest", 1).encode(["The ship"])
        assert tokens.input_ids[0, :3].tolist() == [3, 6, 1]
        assert tokens.token_mask.sum() == 3
    write_word_tokenizer(tmp_path / "tokenizer.json", PHRASES, 20)
    assert tokenizer_bytes(tmp_path, CONFIG) == (tmp_path / "tokenizer.json").read_bytes(), "ready made goes first"


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"has 34 tokens .* has 32 and 1"):
        tokenizer_bytes(made_model(tmp_path / "spiece.model"), CONFIG)
    write_word_tokenizer(tmp_path / "tokenizer.json", PHRASES, 20)
    document = json.loads((tmp_path / "tokenizer.json").read_text())
    document["post_processor"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    with refused("one end token", str(tmp_path / "tokenizer.json")):
        tokenizer_bytes(tmp_path / "tokenizer.json", CONFIG)


SPOILED: dict[str, Callable[[Path], object]] = {
    "another model type": lambda path: made_model(path, model_type=2),
    "no end token": lambda path: made_model(path, without_end=True),
    "a broken character map": lambda path: made_model(path, charsmap=b"\xff" * 37),
    "a map beyond its end": lambda path: made_model(path, charsmap=b"\x04\0\0\0" + b"\xff" * 9),
    "unknown beyond the vocabulary": lambda path: made_model(path, unk_id=1000),
    "empty": lambda path: path.write_bytes(b""),
    "a web page": lambda path: path.write_bytes(b"<!DOCTYPE html>"),
    "a length beyond the end": lambda path: path.write_bytes(b"\x0a\xff\xff\xff\xff\x0f"),
}


@pytest.mark.parametrize("fault", SPOILED)
def test_a_spoiled_model_is_refused_in_one_line(tmp_path: Path, fault: str) -> None:
    SPOILED[fault](tmp_path / "spiece.model")
    with refused("tokenizer.json"):
        open_tokenizer(tmp_path, 64, "longest")
