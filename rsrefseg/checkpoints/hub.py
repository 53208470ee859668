"""Weights that the user gives as a path or by their name on the Hugging Face hub."""

from collections.abc import Callable, Sequence
from pathlib import Path

from rsrefseg.engines.errors import BadInputError, MissingPartError
from rsrefseg.engines.hub.fetch import NAME, download

_WEIGHT_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors", ".model", ".json")


def find_model(
    path: Path, needed: Sequence[Sequence[str]], say: Callable[[str], None], also: Sequence[str] = ()
) -> Path:
    """Return ``path``, or the cached folder of the hub model of that name.

    A name has one slash, and neither it nor its first half exists as a path. Only the files of ``needed`` and ``also``
    are downloaded.

    Args:
        path: a file or folder, or a name such as ``google/siglip-so400m-patch14-384``.
        needed: groups of file names; the model must have one file of each group.
        say: called with a line that reports a download.
        also: names of files to download if the model has them.

    Raises:
        MissingPartError: the model is not in the cache and cannot be downloaded.
        BadInputError: the hub has no such public model, or the model lacks a needed file.
    """
    name = str(path)
    if path.exists() or not NAME.fullmatch(name) or path.suffix in _WEIGHT_SUFFIXES or path.parent.exists():
        return path
    try:
        return download(name, needed, [*also, *(file for group in needed for file in group)], say=say)
    except (BadInputError, MissingPartError) as error:
        raise type(error)(f"no file or folder '{name}': {error}") from error
