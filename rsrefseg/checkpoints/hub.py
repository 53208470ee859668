"""A model named as on the Hugging Face hub, from the local cache, or downloaded where a network is there."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rsrefseg.engines.errors import BadInputError, MissingPartError

Groups = Sequence[Sequence[str]]

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_WEIGHT_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors", ".model", ".json")
# Long enough for a slow answer, short enough for somebody who waits without a network.
_ANSWER_SECONDS = 10.0


def folder_of(path: Path, needed: Groups, say: Callable[[str], None]) -> Path:
    """``path`` itself, or the cached folder of the model of that name on the hub.

    A name has one slash, and nothing on this disk bears it or its first half. The cache is ``$HF_HOME`` or
    ``~/.cache/huggingface``. Only the files of ``needed`` are ever downloaded.

    Args:
        path: a file or folder, or a name such as ``google/siglip-so400m-patch14-384``.
        needed: groups of file names; of each group the folder must have one.
        say: who is told, in one line, that a download begins.

    Raises:
        MissingPartError: the cache lacks it and the hub cannot be asked.
        BadInputError: the hub has no such model, or one without these files.
    """
    name = str(path)
    if path.exists() or not _NAME.fullmatch(name) or path.suffix in _WEIGHT_SUFFIXES or path.parent.exists():
        return path
    cached = _cached(name, needed[0])
    if cached is not None and not (lacking := _lacking(needed, {file.name for file in cached.iterdir()})):
        return cached
    found = "it is not in the cache" if cached is None else f"the cache lacks its {lacking[0]}"
    return _downloaded(name, needed, found, say)


def _cached(name: str, landmark: Sequence[str]) -> Path | None:
    """The folder of a cached model, as far as it goes: only ``landmark`` is looked for."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, local_files_only=True, allow_patterns=list(landmark)))
    except Exception:  # its errors for "not there" differ from release to release
        return None


def _downloaded(name: str, needed: Groups, found: str, say: Callable[[str], None]) -> Path:
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    ways = (
        f"give a path, or fetch it where a network is (`hf download {name}`) and bring the folder or its cache "
        f"({constants.HF_HUB_CACHE})"
    )
    if constants.HF_HUB_OFFLINE:
        raise MissingPartError(f"no file or folder '{name}', {found}, and HF_HUB_OFFLINE forbids to download: {ways}")
    try:
        # One short question first: a download would try again and again for minutes where no network is.
        listing = HfApi().model_info(name, files_metadata=True, timeout=_ANSWER_SECONDS)
    except (GatedRepoError, RepositoryNotFoundError) as error:
        raise BadInputError(
            f"no file or folder '{name}', and the hub has no such public model: check the path or name"
        ) from error
    except Exception as error:  # no network: whatever its client's library raises
        raise MissingPartError(
            f"no file or folder '{name}', {found}, and the hub does not answer ({type(error).__name__}): {ways}"
        ) from error
    sizes = {file.rfilename: file.size or 0 for file in listing.siblings or ()}
    if lacking := _lacking(needed, sizes):
        raise BadInputError(f"'{name}' on the hub has no {lacking[0]}: give a folder that has")
    wanted = [file for group in needed for file in group if file in sizes]
    say(f"downloading '{name}' ({sum(sizes[file] for file in wanted) / 1e9:.1f} GB: {', '.join(wanted)})")
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except Exception as error:
        reason = " ".join(str(error).split())[:120]
        raise MissingPartError(
            f"'{name}' was not downloaded in full ({reason}): run again to go on, or {ways}"
        ) from error


def _lacking(needed: Groups, there: Any) -> list[str]:
    """The groups of which nothing is there, as text."""
    return [" or ".join(group) for group in needed if not any(file in there for file in group)]
