"""Downloads from the Hugging Face hub into its client's cache, from which they are used without a network."""

import re
import sys
from collections.abc import Callable, Sequence
from glob import escape
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..errors import BadInputError, MissingPartError, NotInstalledError
from ..system.files import sha256_file
from ..system.progress import ProgressLine

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

# Digests of a run's files, in the format of `sha256sum`. A bundle has its digests in bundle.json.
SUMS_NAME = "SHA256SUMS"
NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# `Path` joins the two slashes.
_ADDRESS = re.compile(rf"hf:/{{1,2}}(?P<name>{NAME.pattern})(@(?P<revision>[\w./-]+))?")
_PREFIX = "hf:/"
_MANIFEST = "bundle.json"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SUM = re.compile(r"([0-9a-f]{64}) [ *]([^/\\\0]+)")
_TIMEOUT_S = 10.0


def hub_library() -> ModuleType:
    """Return ``huggingface_hub``, which alone reads the user's token; without a terminal, it shows no progress bars.

    Raises:
        NotInstalledError: it is not installed.
    """
    try:
        import huggingface_hub
        from huggingface_hub.utils.tqdm import disable_progress_bars
    except ImportError as error:
        raise NotInstalledError("huggingface_hub is not installed: `pip install 'rsrefseg[hub]'`") from error
    if sys.stderr is None or not sys.stderr.isatty():
        disable_progress_bars()
    return huggingface_hub


def local_folder(path: Path, needed: str) -> Path:
    """Return ``path``, or the cached folder of the repository that ``hf://ORG/NAME[@REV]`` names.

    Args:
        path: a path or an address; REV is a branch, tag or commit, by default ``main``.
        needed: a file that the repository must have, such as ``bundle.json``.

    Raises:
        NotInstalledError: ``huggingface_hub`` is not installed.
        BadInputError: the address is wrong, or a file differs from its digest in ``SHA256SUMS``.
        MissingPartError: the repository is not in the cache, and the hub cannot be reached.
    """
    if not str(path).startswith(_PREFIX):
        return path
    if (address := _ADDRESS.fullmatch(str(path))) is None:
        shown = str(path).replace("hf:/", "hf://", 1)
        raise BadInputError(f"'{shown}' is not an address on the hub: write hf://ORG/NAME or hf://ORG/NAME@REVISION")
    say = ProgressLine("hub").say
    folder = download(address["name"], [[needed]], revision=address["revision"] or "main", say=say)
    if needed != _MANIFEST:  # a bundle checks its files itself
        _check_sums(folder)
    return folder


def download(
    name: str,
    needed: Sequence[Sequence[str]],
    patterns: Sequence[str] = ("*",),
    revision: str = "main",
    say: Callable[[str], None] = print,
) -> Path:
    """Return the cached folder of a repository, after downloading what the cache lacks.

    Without a network, the folder that was downloaded last is used. A commit that is in the cache needs no network.

    Args:
        name: ``ORG/NAME``.
        needed: groups of patterns; the repository must have a file of each group.
        patterns: patterns of the files to download.
        revision: branch, tag or commit.
        say: called with a line that reports a download or a missing network.

    Raises:
        NotInstalledError: ``huggingface_hub`` is not installed.
        BadInputError: the hub has no such repository or revision, or the repository lacks a needed file.
        MissingPartError: the repository is not in the cache, and it cannot be downloaded.
    """
    hub = hub_library()
    from huggingface_hub import constants

    if _COMMIT.fullmatch(revision) and (cached := _cached(hub, name, revision, patterns, needed)) is not None:
        return cached
    try:
        info = repository(name, revision)
        files = [file for file in info.siblings or () if _matches(file.rfilename, patterns)]
        if lacking := [group for group in needed if not any(_matches(file.rfilename, group) for file in files)]:
            part = " or ".join(lacking[0])
            raise BadInputError(f"'{name}' on the hub has no {part} at '{revision}': check the name")
        absent = [file for file in files if not isinstance(_look_up(hub, name, file.rfilename, str(info.sha)), str)]
        if absent:
            size_mb = sum(file.size or 0 for file in absent) / 1e6
            say(f"downloading '{name}' into {constants.HF_HUB_CACHE}: {len(absent)} files, {size_mb:,.1f} MB")
        names = [escape(file.rfilename) for file in files]
        return Path(hub.snapshot_download(name, revision=revision, allow_patterns=names))
    except BadInputError:
        raise
    except Exception as error:  # without a network, the HTTP client raises errors of its own classes
        if (cached := _cached(hub, name, revision, patterns, needed)) is not None:
            say(f"note: the hub cannot be used ({type(error).__name__}): '{name}' is taken from the cache as it is")
            return cached
        raise MissingPartError(
            f"'{name}' is not, or not wholly, in the cache ({constants.HF_HUB_CACHE}) and cannot be downloaded "
            f"({type(error).__name__}): check the network, or run `hf download {name}` where there is one, copy the "
            "folder here and give its path"
        ) from error


def repository(name: str, revision: str = "main") -> "ModelInfo":
    """Return what the hub knows of a repository: its commit and its files with their sizes and digests.

    Raises:
        BadInputError: the hub has no such repository or revision, or denies access to it.
    """
    hub = hub_library()
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        info: ModelInfo = hub.HfApi().model_info(name, revision=revision, timeout=_TIMEOUT_S, files_metadata=True)
    except RepositoryNotFoundError as error:  # also of a gated repository
        hint = "check the name, or log in with `hf auth login`"
        raise BadInputError(f"the hub has no model '{name}' that you may read: {hint}") from error
    except RevisionNotFoundError as error:
        raise BadInputError(f"'{name}' on the hub has no revision '{revision}': check it") from error
    return info


def _cached(
    hub: Any, name: str, revision: str, patterns: Sequence[str], needed: Sequence[Sequence[str]]
) -> Path | None:
    """Return the complete cached folder of a repository, if there is one."""
    try:
        folder = Path(
            hub.snapshot_download(name, revision=revision, allow_patterns=list(patterns), local_files_only=True)
        )
    except Exception:  # the errors for "not in the cache" differ between releases
        return None
    return folder if all(any(any(folder.glob(pattern)) for pattern in group) for group in needed) else None


def _look_up(hub: Any, name: str, file: str, commit: str) -> Any:
    return hub.try_to_load_from_cache(name, file, revision=commit)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    from fnmatch import fnmatchcase

    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _check_sums(folder: Path) -> None:
    """Raise BadInputError if a file of a run differs from its digest in ``SHA256SUMS``."""
    path = folder / SUMS_NAME
    if not path.is_file():
        raise BadInputError(f"'{folder}' has no {SUMS_NAME}: upload the run with `rsrefseg push`")
    for line in path.read_text(encoding="utf-8").splitlines():
        if (found := _SUM.fullmatch(line)) is None:
            raise BadInputError(f"'{path}' is not a list of SHA-256 digests: push the run again")
        file = folder / found[2]
        if not file.is_file() or sha256_file(file) != found[1]:
            state = "was changed after it was pushed" if file.is_file() else "is missing"
            raise BadInputError(f"'{file}' {state}: its SHA-256 is not the one in {SUMS_NAME}; push the run again")
