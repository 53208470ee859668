"""The tokenizer that belongs to brought weights, as the bytes of a ``tokenizer.json``."""

import tempfile
from pathlib import Path

from rsrefseg.engines.errors import BadInputError
from rsrefseg.engines.text import Tokenizer

from ..model.config import ModelConfig
from .sentencepiece import convert_spiece

FAST_NAME = "tokenizer.json"
SPIECE_NAME = "spiece.model"
_SPIECE_SUFFIX = ".model"


def tokenizer_bytes(path: Path, config: ModelConfig) -> bytes:
    """A ``tokenizer.json`` for SigLIP of this configuration.

    Args:
        path: a ``tokenizer.json``, a ``spiece.model``, or a folder with one of them (the first wins).
        config: whose vocabulary it must fit.

    Raises:
        BadInputError: there is none, it cannot be read, or it belongs to another model.
        MissingPartError: ``spiece.model`` cannot be read here.
    """
    file = _tokenizer_file(path)
    if file.suffix == _SPIECE_SUFFIX:
        content = convert_spiece(file).to_str(pretty=True).encode() + b"\n"
    else:
        try:
            content = file.read_bytes()
        except OSError as error:
            raise BadInputError(f"the tokenizer '{file}' cannot be read: {error.strerror}") from error
    _check(content, file, config)
    return content


def _tokenizer_file(path: Path) -> Path:
    if path.is_dir():
        for name in (FAST_NAME, SPIECE_NAME):
            if (path / name).is_file():
                return path / name
        raise BadInputError(f"no tokenizer in '{path}': it has neither {FAST_NAME} nor {SPIECE_NAME}")
    if not path.is_file():
        raise BadInputError(f"the tokenizer '{path}' does not exist: give a {FAST_NAME} or {SPIECE_NAME}")
    return path


def _check(content: bytes, file: Path, config: ModelConfig) -> None:
    siglip = config.siglip
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / FAST_NAME
        copy.write_bytes(content)
        try:
            tokenizer = Tokenizer(copy, siglip.text_length, config.text_padding, siglip.pad_token_id)
        except BadInputError as error:
            raise BadInputError(str(error).replace(str(copy), str(file))) from error
    if tokenizer.vocabulary_size > siglip.vocab_size or tokenizer.end_id != siglip.pad_token_id:
        raise BadInputError(
            f"'{file}' has {tokenizer.vocabulary_size} tokens and ends a phrase with token {tokenizer.end_id}; preset "
            f"'{config.preset}' has {siglip.vocab_size} and {siglip.pad_token_id}: give the tokenizer of its SigLIP"
        )
