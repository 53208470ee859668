"""The tokenizer that belongs to weights of others, as ``tokenizer.json`` or as SentencePiece's ``spiece.model``."""

import string
import tempfile
from pathlib import Path
from typing import Any

from tokenizers import Regex, models, normalizers, processors
from tokenizers import Tokenizer as FastTokenizer

from rsrefseg.engines.errors import BadInputError, MissingPartError
from rsrefseg.engines.text import Padding, Tokenizer

from ..data.annotation_files import read_bytes
from ..model.config import ModelConfig

FAST_NAME = "tokenizer.json"
SPIECE_NAME = "spiece.model"
_END = "</s>"
_MAX_FILE_BYTES = 64 << 20
_UNIGRAM = 1
_WORD_START = "\u2581"


def tokenizer_bytes(path: Path, config: ModelConfig) -> bytes:
    """A ``tokenizer.json`` for SigLIP of this configuration.

    Args:
        path: a ``tokenizer.json``, a ``spiece.model``, or a folder with one of them (the first wins).
        config: whose vocabulary it must fit.

    Raises:
        BadInputError: there is none, it cannot be read, or it belongs to another model.
        MissingPartError: ``spiece.model`` cannot be read here.
    """
    siglip, content = config.siglip, _read(path)
    tokenizer = _opened(content, path, siglip.text_length, config.text_padding, siglip.pad_token_id)
    if tokenizer.vocabulary_size > siglip.vocab_size or tokenizer.end_id != siglip.pad_token_id:
        raise BadInputError(
            f"'{path}' has {tokenizer.vocabulary_size} tokens and ends a phrase with token {tokenizer.end_id}; preset "
            f"'{config.preset}' has {siglip.vocab_size} and {siglip.pad_token_id}: give the tokenizer of its SigLIP"
        )
    return content


def open_tokenizer(path: Path, length: int, padding: Padding) -> Tokenizer:
    """The tokenizer of a file or folder, as ``tokenizer_bytes`` finds it, whatever model it belongs to.

    Raises:
        BadInputError: there is none, or it cannot be read.
        MissingPartError: ``spiece.model`` cannot be read here.
    """
    return _opened(_read(path), path, length, padding)


def _read(path: Path) -> bytes:
    """The content of ``tokenizer.json``, converted where the file is SentencePiece's."""
    file = path
    if path.is_dir():
        file = next((path / name for name in (FAST_NAME, SPIECE_NAME) if (path / name).is_file()), path)
        if file == path:
            raise BadInputError(f"no tokenizer in '{path}': it has neither {FAST_NAME} nor {SPIECE_NAME}")
    if not file.is_file():
        raise BadInputError(f"the tokenizer '{file}' does not exist: give a {FAST_NAME} or {SPIECE_NAME}")
    if file.suffix == ".model":
        return convert_spiece(file).to_str(pretty=True).encode() + b"\n"
    return read_bytes(file, _MAX_FILE_BYTES)


def _opened(content: bytes, path: Path, length: int, padding: Padding, pad_id: int | None = None) -> Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / FAST_NAME
        copy.write_bytes(content)
        try:
            return Tokenizer(copy, length, padding, pad_id)
        except BadInputError as error:
            raise BadInputError(str(error).replace(str(copy), str(path))) from error


def convert_spiece(path: Path) -> FastTokenizer:
    """The fast tokenizer that reads phrases as ``transformers``' SigLIP tokenizer does with a SentencePiece model.

    Text is canonicalised as SigLIP was trained (``transformers``, ``SiglipTokenizer.canonicalize_text``): lower case,
    ASCII punctuation removed, white space collapsed; then SentencePiece's own character map and unigram pieces, and
    one end token.

    Raises:
        BadInputError: the file is no such model.
        MissingPartError: the package that reads SentencePiece's files is not installed.
    """
    proto = _read_spiece(path)
    vocabulary = [(piece.piece, piece.score) for piece in proto.pieces]
    end_id = next((index for index, (piece, _) in enumerate(vocabulary) if piece == _END), None)
    if proto.trainer_spec.model_type != _UNIGRAM or end_id is None:
        raise BadInputError(f"'{path}' is not a unigram model with an end token, as SigLIP's is: give a tokenizer.json")
    try:
        model = models.Unigram(vocabulary, proto.trainer_spec.unk_id, proto.trainer_spec.byte_fallback)
        tokenizer = FastTokenizer(model)
        tokenizer.normalizer = _normalizer(proto.normalizer_spec)
        tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {_END}", special_tokens=[(_END, end_id)])
        FastTokenizer.from_str(tokenizer.to_str()).encode("the ship")
    except (KeyboardInterrupt, SystemExit):
        raise
    # The Rust side reports a bad character map or a bad vocabulary by bare Exception or by a panic.
    except BaseException as error:
        reason = " ".join(str(error).split())[:120]
        raise BadInputError(f"'{path}' cannot be made a tokenizer ({reason}): give a tokenizer.json") from error
    return tokenizer


def _normalizer(spec: Any) -> normalizers.Normalizer:
    steps: list[normalizers.Normalizer] = [
        # The published tokenizer puts the mark of a word's start before the text first, and cleans both together.
        normalizers.Replace(_WORD_START, " "),
        normalizers.Prepend(_WORD_START),
        normalizers.Lowercase(),
        normalizers.Replace(Regex("[" + "".join(f"\\{mark}" for mark in string.punctuation) + "]"), ""),
        normalizers.Replace(Regex(r"\s+"), " "),
        normalizers.Strip(),
    ]
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(" {2,}"), " "), normalizers.Replace(Regex(f"[ {_WORD_START}]+$"), "")]
    steps.append(normalizers.Replace(" ", _WORD_START))
    return normalizers.Sequence(steps)


def _read_spiece(path: Path) -> Any:
    try:
        from transformers.convert_slow_tokenizer import import_protobuf

        proto = import_protobuf().ModelProto()
    except ImportError as error:
        raise MissingPartError(
            f"'{path}' needs the package 'protobuf' to be read: `pip install protobuf`, or give a tokenizer.json"
        ) from error
    content = read_bytes(path, _MAX_FILE_BYTES)
    try:
        proto.ParseFromString(content)
    except Exception as error:  # protobuf's DecodeError is another class in each of its implementations
        raise BadInputError(f"'{path}' is not a SentencePiece model: give a tokenizer.json") from error
    return proto
