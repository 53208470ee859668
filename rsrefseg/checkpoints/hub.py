"""Finds models of the Hugging Face hub in the local cache or downloads them."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from rsrefseg.engines.errors import BadInputError, MissingPartError

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_WEIGHT_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors", ".model", ".json")
_TIMEOUT_S = 10.0


def find_model(
    path: Path, needed: Sequence[Sequence[str]], say: Callable[[str], None], also: Sequence[str] = ()
) -> Path:
    """Return ``path``, or the cached folder of the hub model of that name.

    A name has one slash, and neither it nor its first half exists as a path. The cache is ``$HF_HOME`` or
    ``~/.cache/huggingface``. Only the files of ``needed`` and ``also`` are downloaded.

    Args:
        path: a file or folder, or a name such as ``google/siglip-so400m-patch14-384``.
        needed: groups of file names; the folder must have one file of each group.
        say: called with a line that reports a download.
        also: names of files to download if the model has them.

    Raises:
        MissingPartError: the model is not in the cache and cannot be downloaded.
        BadInputError: the hub has no such public model, or the model lacks a needed file.
    """
    name = str(path)
    if path.exists() or not _NAME.fullmatch(name) or path.suffix in _WEIGHT_SUFFIXES or path.parent.exists():
        return path
    from huggingface_hub import HfApi, constants, snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    def lacking(folder: Path) -> str | None:
        groups = (group for group in needed if not any((folder / file).is_file() for file in group))
        return next((" or ".join(group) for group in groups), None)

    found, complete = "it is not in the cache", None
    try:
        cached = Path(snapshot_download(name, local_files_only=True, allow_patterns=list(needed[0])))
        if (part := lacking(cached)) is None:
            complete = cached
            # Optional files are in the cache, or known to be absent.
            if all(try_to_load_from_cache(name, file, revision=cached.name) is not None for file in also):
                return cached
        found = f"the cache lacks its {part}"
    except Exception:  # the errors for "not in the cache" differ between releases
        pass
    try:
        # A short request first: without a network, a download retries for minutes.
        HfApi().model_info(name, timeout=_TIMEOUT_S)
        say(f"downloading '{name}' into {constants.HF_HUB_CACHE}")
        folder = Path(snapshot_download(name, allow_patterns=[*also, *(file for group in needed for file in group)]))
    except (GatedRepoError, RepositoryNotFoundError) as error:
        raise BadInputError(f"no file or folder '{name}', and the hub has no such public model: check it") from error
    except Exception as error:  # without a network, the HTTP client raises errors of its own classes
        if complete is not None:
            return complete
        raise MissingPartError(
            f"no file or folder '{name}', {found}, and it cannot be downloaded ({type(error).__name__}): give a path, "
            f"or run `hf download {name}` where there is a network and copy the folder or its cache here "
            f"({constants.HF_HUB_CACHE})"
        ) from error
    if (part := lacking(folder)) is not None:
        raise BadInputError(f"'{name}' on the hub has no {part}: give a folder that has")
    return folder
