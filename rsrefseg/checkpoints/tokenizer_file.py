"""Reads the tokenizer of a SigLIP or SigLIP 2 from ``tokenizer.json`` or from SentencePiece's ``spiece.model``."""

import string
import tempfile
from pathlib import Path
from typing import Any

from tokenizers import Regex, models, normalizers, processors
from tokenizers import Tokenizer as FastTokenizer

from rsrefseg.engines.errors import BadInputError, MissingPartError
from rsrefseg.engines.text import TEXT_LENGTH, Padding, Tokenizer

from ..data.annotation_files import parse_object, read_bytes, read_text
from ..model.config import ModelConfig

FAST_NAME = "tokenizer.json"
TOKENIZER_CONFIG_NAME = "tokenizer_config.json"
SPIECE_NAME = "spiece.model"
_END = "</s>"
_MAX_FILE_BYTES = 64 << 20
_UNIGRAM = 1
_WORD_START = "\u2581"
# Classes of ``transformers`` that lower-case text before their ``tokenizer.json`` does its work.
_LOWER_CASING = ("Siglip2Tokenizer", "Siglip2TokenizerFast")


def tokenizer_bytes(path: Path, config: ModelConfig) -> bytes:
    """Return the content of ``tokenizer.json`` for a SigLIP of this configuration.

    Args:
        path: a ``tokenizer.json``, a ``spiece.model``, or a folder with one of them; ``tokenizer.json`` has priority.
        config: model whose vocabulary the tokenizer must fit.

    Raises:
        BadInputError: the tokenizer is missing, cannot be read, or belongs to another model.
        MissingPartError: ``spiece.model`` cannot be read here.
    """
    siglip, content = config.siglip, _read(path, keep_case=config.rsrefseg2 is not None)
    found_pad_id = _pad_id(content)
    tokenizer = _opened(content, path, siglip.text_length, config.text_padding, siglip.pad_token_id)
    pad_id = tokenizer.end_id if found_pad_id is None else found_pad_id
    if tokenizer.vocabulary_size > siglip.vocab_size or pad_id != siglip.pad_token_id:
        raise BadInputError(
            f"'{path}' has {tokenizer.vocabulary_size} tokens and pads a phrase with token {pad_id}; preset "
            f"'{config.preset}' has {siglip.vocab_size} and {siglip.pad_token_id}: give the tokenizer of its SigLIP"
        )
    return content


def pad_token_id(path: Path) -> int:
    """Return the id of the padding token of a tokenizer: its end token, unless its files name another one.

    Raises:
        BadInputError: the tokenizer is missing or cannot be read.
        MissingPartError: ``spiece.model`` cannot be read here.
    """
    content = _read(path)
    found = _pad_id(content)
    return _opened(content, path, TEXT_LENGTH, "fixed").end_id if found is None else found


def open_tokenizer(path: Path, length: int, padding: Padding) -> Tokenizer:
    """Open the tokenizer of a file or folder, for any model.

    Raises:
        BadInputError: the tokenizer is missing or cannot be read.
        MissingPartError: ``spiece.model`` cannot be read here.
    """
    return _opened(_read(path), path, length, padding)


def _read(path: Path, keep_case: bool = False) -> bytes:
    """Return the content of ``tokenizer.json``, converted from SentencePiece if necessary.

    ``keep_case`` ignores that newer releases of ``transformers`` lower-case text before SigLIP 2's tokenizer; those
    that RSRefSeg 2 was trained with did not.
    """
    file = path
    if path.is_dir():
        file = next((path / name for name in (FAST_NAME, SPIECE_NAME) if (path / name).is_file()), path)
        if file == path:
            raise BadInputError(f"no tokenizer in '{path}': it has neither {FAST_NAME} nor {SPIECE_NAME}")
    if not file.is_file():
        raise BadInputError(f"the tokenizer '{file}' does not exist: give a {FAST_NAME} or {SPIECE_NAME}")
    if file.suffix == ".model":
        return convert_spiece(file).to_str(pretty=True).encode() + b"\n"
    return _with_settings(read_bytes(file, _MAX_FILE_BYTES), file.with_name(TOKENIZER_CONFIG_NAME), keep_case)


def _with_settings(content: bytes, path: Path, keep_case: bool) -> bytes:
    """Return ``tokenizer.json`` with what only the ``tokenizer_config.json`` beside it says: lower case, padding."""
    if not path.is_file():
        return content
    settings = parse_object(read_text(path, _MAX_FILE_BYTES), f"'{path}'")
    try:
        tokenizer = FastTokenizer.from_str(content.decode())
    except Exception:  # reported by ``Tokenizer``, which opens the content later
        return content
    lower = settings.get("tokenizer_class") in _LOWER_CASING and not keep_case
    token = settings.get("pad_token")
    token = token.get("content") if isinstance(token, dict) else token
    pad_id = tokenizer.token_to_id(token) if isinstance(token, str) else None
    pads_otherwise = pad_id is not None and tokenizer.encode("").ids[-1:] != [pad_id]
    if not lower and not pads_otherwise:
        return content
    if lower:
        steps = [normalizers.Lowercase(), *([tokenizer.normalizer] if tokenizer.normalizer else [])]
        tokenizer.normalizer = normalizers.Sequence(steps)
    if pads_otherwise:
        tokenizer.enable_padding(pad_id=pad_id, pad_token=token)
    return tokenizer.to_str(pretty=True).encode() + b"\n"


def _pad_id(content: bytes) -> int | None:
    """Return the padding token that ``tokenizer.json`` names, if it does."""
    try:
        padding = FastTokenizer.from_str(content.decode()).padding
    except Exception:  # reported by ``Tokenizer``, which opens the content later
        return None
    return None if padding is None else int(padding["pad_id"])


def _opened(content: bytes, path: Path, length: int, padding: Padding, pad_id: int | None = None) -> Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / FAST_NAME
        copy.write_bytes(content)
        try:
            return Tokenizer(copy, length, padding, pad_id)
        except BadInputError as error:
            raise BadInputError(str(error).replace(str(copy), str(path))) from error


def convert_spiece(path: Path) -> FastTokenizer:
    """Convert a SentencePiece model to a fast tokenizer equal to the SigLIP tokenizer of ``transformers``.

    It canonicalises text as in the training of SigLIP (``transformers``, ``SiglipTokenizer.canonicalize_text``): lower
    case, no ASCII punctuation, single spaces. SentencePiece's character map and unigram pieces follow, and one end
    token.

    Raises:
        BadInputError: the file is not a unigram model with an end token.
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
    # The Rust library reports a bad character map or vocabulary as a bare Exception or a panic.
    except BaseException as error:
        reason = " ".join(str(error).split())[:120]
        raise BadInputError(f"'{path}' cannot be converted to a tokenizer ({reason}): give a tokenizer.json") from error
    return tokenizer


def _normalizer(spec: Any) -> normalizers.Normalizer:
    steps: list[normalizers.Normalizer] = [
        # The published tokenizer adds the word-start mark before it cleans the text.
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
    except Exception as error:  # each implementation of protobuf has its own DecodeError
        raise BadInputError(f"'{path}' is not a SentencePiece model: give a tokenizer.json") from error
    return proto
