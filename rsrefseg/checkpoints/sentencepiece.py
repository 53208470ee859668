"""SigLIP's ``spiece.model`` as a ``tokenizer.json`` that gives the same tokens, with no SentencePiece at run time."""

import string
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, models, normalizers, processors

from rsrefseg.engines.errors import BadInputError, MissingPartError

END = "</s>"
MAX_MODEL_BYTES = 64 << 20
_UNIGRAM = 1
_WORD_START = "\u2581"


def convert_spiece(path: Path) -> Tokenizer:
    """The fast tokenizer that reads phrases as ``transformers``' SigLIP tokenizer does with this model.

    Text is canonicalised as SigLIP was trained (``transformers``, ``SiglipTokenizer.canonicalize_text``): lower case,
    ASCII punctuation removed, white space collapsed; then SentencePiece's own character map and unigram pieces, and
    one end token.

    Raises:
        BadInputError: the file is no such model.
        MissingPartError: the package that reads SentencePiece's files is not installed.
    """
    proto = _read_model(path)
    vocabulary = [(piece.piece, piece.score) for piece in proto.pieces]
    end_id = next((index for index, (piece, _) in enumerate(vocabulary) if piece == END), None)
    if proto.trainer_spec.model_type != _UNIGRAM or end_id is None or not vocabulary:
        raise BadInputError(f"'{path}' is no unigram model with an end token, as SigLIP's is: give a tokenizer.json")
    try:
        model = models.Unigram(vocabulary, proto.trainer_spec.unk_id, proto.trainer_spec.byte_fallback)
        tokenizer = Tokenizer(model)
        tokenizer.normalizer = _normalizer(proto.normalizer_spec)
        tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, end_id)])
        Tokenizer.from_str(tokenizer.to_str()).encode("the ship")
    except (KeyboardInterrupt, SystemExit):
        raise
    # The Rust side says a bad character map or a bad vocabulary by bare Exception or by a panic.
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


def _read_model(path: Path) -> Any:
    try:
        from transformers.convert_slow_tokenizer import import_protobuf

        schema = import_protobuf()
    except ImportError as error:
        raise MissingPartError(
            f"'{path}' needs the package 'protobuf' to be read: `pip install protobuf`, or give a tokenizer.json"
        ) from error
    try:
        if path.stat().st_size > MAX_MODEL_BYTES:
            raise BadInputError(f"'{path}' has more than {MAX_MODEL_BYTES >> 20} MiB, which no SigLIP vocabulary has")
        proto = schema.ModelProto()
        proto.ParseFromString(path.read_bytes())
    except OSError as error:
        raise BadInputError(f"'{path}' cannot be read: {error.strerror}") from error
    except BadInputError:
        raise
    except Exception as error:  # protobuf's DecodeError is another class in each of its implementations
        raise BadInputError(
            f"'{path}' is no SentencePiece model: download it again, or give a tokenizer.json"
        ) from error
    return proto
