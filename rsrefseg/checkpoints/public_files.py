"""Builds the initial model of a training from the published files of SAM and SigLIP."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from rsrefseg.engines.errors import BadInputError

from ..model.config import ModelConfig, named
from ..model.model import RSRefSeg, build_model
from .key_matching import Matches, fill
from .model_file import digest
from .sam_file import match_sam, read_sam
from .siglip_folder import CONFIG_NAME, match_siglip, read_normalization, read_siglip
from .tensor_files import weight_files


@dataclass(frozen=True, slots=True)
class PinnedPath:
    """A file or folder and the SHA-256 of its weights (``weights_digest``)."""

    path: str
    sha256: str


@dataclass(frozen=True, slots=True)
class PublicFiles:
    """SAM's file and SigLIP's folder as recorded by a run."""

    sam: PinnedPath
    siglip: PinnedPath

    def build(self, config: ModelConfig, seed: int) -> RSRefSeg:
        """Build a model with the weights of both files and a random prompter, initialised from ``seed``.

        Raises:
            BadInputError: a file is missing, differs from the recorded one, or does not fit ``config``.
        """
        for pinned in (self.sam, self.siglip):
            if weights_digest(Path(pinned.path)) != pinned.sha256:
                raise BadInputError(
                    f"'{pinned.path}' is not the file this run was trained on: its SHA-256 differs from run.json"
                )
        model = build_model(config, seed)
        for matches in _matches(config, model, Path(self.sam.path), Path(self.siglip.path)):
            fill(model, matches)
        model.refresh_position_encodings()
        return model


def pin_public_files(sam: Path, siglip: Path) -> PublicFiles:
    """Record the paths and digests of both files.

    Raises:
        BadInputError: a file is missing.
    """
    return PublicFiles(*(PinnedPath(str(path.absolute()), weights_digest(path)) for path in (sam, siglip)))


def check_public_files(config: ModelConfig, sam: Path, siglip: Path) -> tuple[str, ...]:
    """Check every tensor of both files without building the model; return a line for each file with unused ones.

    Raises:
        BadInputError: a file cannot be read or does not fit ``config``.
    """
    expected = build_model(config, device="meta")
    return tuple(note for matches in _matches(config, expected, sam, siglip) for note in matches.notes)


def fit_config(config: ModelConfig, sam: Path, siglip: Path, keep_sizes: bool = False) -> ModelConfig:
    """Return ``config`` with the sizes and the normalisation of both files, named after the preset of these sizes.

    With ``keep_sizes``, only the normalisation changes.

    Raises:
        BadInputError: a file cannot be read or is of another kind.
    """
    normalised = replace(config, preprocessing=read_normalization(siglip, config.preprocessing))
    if keep_sizes:
        return normalised
    return named(replace(normalised, sam=read_sam(sam, config.sam), siglip=read_siglip(siglip)), config)


def weights_digest(path: Path) -> str:
    """Return the SHA-256 of a file, or of the names and digests of a folder's weights and configuration.

    Raises:
        BadInputError: the path has no weights.
    """
    if not path.is_dir():
        return digest(weight_files(path)[0])
    files = [file for file in (*weight_files(path), path / CONFIG_NAME) if file.is_file()]
    return hashlib.sha256(json.dumps([[file.name, digest(file)] for file in files]).encode()).hexdigest()


def _matches(config: ModelConfig, model: RSRefSeg, sam: Path, siglip: Path) -> Iterator[Matches]:
    """Yield the matches of one file after the other, so that only one file is mapped at a time."""
    expected = model.state_dict()
    yield match_sam(sam, config, expected)
    yield match_siglip(siglip, config, expected)
