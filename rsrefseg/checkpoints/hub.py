"""A model named as on the Hugging Face hub, from the local cache, or downloaded where there is a network."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from rsrefseg.engines.errors import BadInputError, MissingPartError

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_WEIGHT_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors", ".model", ".json")
_TIMEOUT_S = 10.0


def folder_of(path: Path, needed: Sequence[Sequence[str]], say: Callable[[str], None]) -> Path:
    """``path`` itself, or the cached folder of the model of that name on the hub.

    A name has one slash, and neither it nor its first half exists on this disk. The cache is ``$HF_HOME`` or
    ``~/.cache/huggingface``. Only the files of ``needed`` are ever downloaded.

    Args:
        path: a file or folder, or a name such as ``google/siglip-so400m-patch14-384``.
        needed: groups of file names; of each group the folder must have one.
        say: takes the line that reports a download.

    Raises:
        MissingPartError: the cache lacks it and it cannot be downloaded.
        BadInputError: the hub has no such model, or one without these files.
    """
    name = str(path)
    if path.exists() or not _NAME.fullmatch(name) or path.suffix in _WEIGHT_SUFFIXES or path.parent.exists():
        return path
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    def lacking(folder: Path) -> str | None:
        groups = (group for group in needed if not any((folder / file).is_file() for file in group))
        return next((" or ".join(group) for group in groups), None)

    found = "it is not in the cache"
    try:
        cached = Path(snapshot_download(name, local_files_only=True, allow_patterns=list(needed[0])))
        if (part := lacking(cached)) is None:
            return cached
        found = f"the cache lacks its {part}"
    except Exception:  # its errors for "not there" differ from release to release
        pass
    try:
        # One short question first: without a network, a download would retry for minutes.
        HfApi().model_info(name, timeout=_TIMEOUT_S)
        say(f"downloading '{name}' into {constants.HF_HUB_CACHE}")
        folder = Path(snapshot_download(name, allow_patterns=[file for group in needed for file in group]))
    except (GatedRepoError, RepositoryNotFoundError) as error:
        raise BadInputError(f"no file or folder '{name}', and the hub has no such public model: check it") from error
    except Exception as error:  # no network: whatever its client's library raises
        raise MissingPartError(
            f"no file or folder '{name}', {found}, and it cannot be downloaded ({type(error).__name__}): give a path, "
            f"or run `hf download {name}` where there is a network and copy the folder or its cache here "
            f"({constants.HF_HUB_CACHE})"
        ) from error
    if (part := lacking(folder)) is not None:
        raise BadInputError(f"'{name}' on the hub has no {part}: give a folder that has")
    return folder
