"""The published weights that each preset starts from, and their download."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import BadInputError
from ..system.files import sha256_file
from .fetch import download, hub_library, repository


@dataclass(frozen=True)
class Base:
    """A published model on the hub.

    Attributes:
        option: option of ``rsrefseg train`` that takes it.
        name: repository.
        weights: pattern of its file of weights, a safetensors file.
        others: further files that are needed, where the repository has them.
        size_gb: size of the weights: 4 bytes a parameter, GB.
        licence: its licence.
        sha256: digest of its file of weights, where it is known from elsewhere than the hub.
    """

    option: str
    name: str
    weights: str
    size_gb: float
    others: tuple[str, ...] = ()
    licence: str = "Apache-2.0"
    sha256: str | None = None


def _sam(model: str, size_gb: float) -> Base:
    """SAM under segment-anything's own names; the repository holds its sizes side by side."""
    return Base("--sam", "kornia/sam", f"*{model}*.safetensors", size_gb)


def _siglip(name: str, size_gb: float) -> Base:
    tokenizer = (
        "tokenizer.json",
        "spiece.model",
        "tokenizer.model",
        "tokenizer_config.json",
        "special_tokens_map.json",
    )
    others = ("config.json", "preprocessor_config.json", *tokenizer)
    return Base("--siglip", name, "model.safetensors", size_gb, others)


_SO400M = _siglip("google/siglip-so400m-patch14-384", 3.51)
BASES = {
    "s": (_sam("vit_b", 0.37), _siglip("google/siglip-base-patch16-384", 0.81)),
    "b": (_sam("vit_b", 0.37), _SO400M),
    "l": (_sam("vit_l", 1.25), _SO400M),
}
# Trained RSRefSeg 2, each with the tokenizer of its SigLIP 2. Nobody has published the digest of ``rrsisd.pth``.
_SECOND, _SIGLIP2 = "KyanChen/RSRefSeg2", "google/siglip2-so400m-patch16-512"
_REFSEGRS_SHA256 = "6018af204120cf14e7555ff067f6fa4a921eba084c33be308bc65bc540f826ee"
_TOKENIZER = Base("--siglip", _SIGLIP2, "tokenizer.json", 0.03, ("tokenizer_config.json",))
CHECKPOINTS = {
    "rsrefseg2-rrsisd": (Base("FILE", _SECOND, "rrsisd.pth", 5.79), _TOKENIZER),
    "rsrefseg2-refsegrs": (Base("FILE", _SECOND, "refsegrs.pth", 5.79, sha256=_REFSEGRS_SHA256), _TOKENIZER),
}


@dataclass(frozen=True)
class BaseFile:
    """A downloaded file: its path, SHA-256 and size in bytes."""

    path: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class Downloaded:
    """The files of a preset's bases, and the command that trains on them, or that converts a trained checkpoint."""

    preset: str
    files: tuple[BaseFile, ...]
    train: str | None = None
    convert: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-serialisable dict."""
        return asdict(self)

    def render(self) -> str:
        """Return the files and the command as text."""
        lines = [f"{file.sha256}  {file.size_bytes / 1e6:10,.1f} MB  {file.path}" for file in self.files]
        verb, command = ("train", self.train) if self.train is not None else ("convert", self.convert)
        return "\n".join(["SHA-256, size and path:", *lines, "", f"{verb} with:", f"  {command}"])


def download_bases(preset: str, say: Callable[[str], None]) -> Downloaded:
    """Download the bases of a preset into the hub's cache and check every file whose digest is known.

    Args:
        preset: a key of ``BASES`` or ``CHECKPOINTS``.
        say: called with a line that reports a download.

    Raises:
        BadInputError: the preset has no published bases, or a file differs from its digest on the hub.
        MissingPartError: see ``download``.
    """
    files, places = [], []
    for base in bases_of(preset):
        folder = download(base.name, [[base.weights]], (base.weights, *base.others), say=say)
        weights = _weights(base, folder)
        known = _known_digests(base.name, folder.name)
        if base.sha256 is not None:
            known[weights.name] = base.sha256
        for path in [weights, *(folder / name for name in base.others if (folder / name).is_file())]:
            found = sha256_file(path)
            if known.get(path.name, found) != found:
                raise BadInputError(f"'{path}' is not the published file, its SHA-256 differs: delete it, then repeat")
            files.append(BaseFile(str(path), found, path.stat().st_size))
        places.append((base.option, folder if base.option == "--siglip" else weights))
    if preset in CHECKPOINTS:
        (_, checkpoint), (_, siglip) = places
        return Downloaded(
            preset, tuple(files), convert=f"rsrefseg convert {checkpoint} --siglip {siglip} --out runs/{preset}"
        )
    options = " ".join(f"{option} {place}" for option, place in places)
    return Downloaded(preset, tuple(files), f"rsrefseg train --config {preset} --data PATH {options}")


def bases_of(preset: str) -> tuple[Base, ...]:
    """Return what is downloaded for a key of ``BASES`` or ``CHECKPOINTS``.

    Raises:
        BadInputError: there is nothing to download for it.
    """
    published = BASES | CHECKPOINTS
    if preset not in published:
        raise BadInputError(f"preset '{preset}' has no bases to download: choose one of {', '.join(published)}")
    return published[preset]


def cached_weights(base: Base) -> Path | None:
    """Return the file of a base's weights in the hub's cache, if it is there."""
    try:
        folder = hub_library().snapshot_download(base.name, allow_patterns=[base.weights], local_files_only=True)
        return _weights(base, Path(folder))
    except Exception:  # the errors for "not in the cache" differ between releases
        return None


def _weights(base: Base, folder: Path) -> Path:
    found = sorted(folder.glob(base.weights))
    if len(found) != 1:
        raise BadInputError(f"'{base.name}' has {len(found)} files '{base.weights}', not one: give a file to --sam")
    return found[0]


def _known_digests(name: str, commit: str) -> dict[str, str]:
    """Return the digests that the hub records for large files; nothing without a network."""
    try:
        info = repository(name, commit)
    except Exception:  # without a network, the HTTP client raises errors of its own classes
        return {}
    return {file.rfilename: file.lfs.sha256 for file in info.siblings or () if file.lfs is not None}
