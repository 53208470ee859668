"""SAM's file and SigLIP's folder, as published, as the weights that training starts from."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rsrefseg.engines.errors import BadInputError

from ..model.config import ModelConfig
from ..model.model import RSRefSeg, build_model
from .key_matching import Matches, fill
from .model_file import digest
from .sam_file import match_sam
from .siglip_folder import CONFIG_NAME, match_siglip
from .tensor_files import weight_files


@dataclass(frozen=True, slots=True)
class PinnedPath:
    """A file or folder and the SHA-256 of what was read of it (``weights_digest``)."""

    path: str
    sha256: str


@dataclass(frozen=True, slots=True)
class PublicFiles:
    """SAM's file and SigLIP's folder, as a run records them."""

    sam: PinnedPath
    siglip: PinnedPath

    def build(self, config: ModelConfig, seed: int) -> RSRefSeg:
        """A model with both towers from these files; its prompter is random, as ``seed`` decides.

        Raises:
            BadInputError: a file is gone, not the one that was recorded, or does not fit ``config``.
        """
        for pinned in (self.sam, self.siglip):
            if weights_digest(Path(pinned.path)) != pinned.sha256:
                raise BadInputError(
                    f"'{pinned.path}' is not what this run was trained on: its SHA-256 differs from run.json"
                )
        model = build_model(config, seed)
        for matches in _matches(config, model, Path(self.sam.path), Path(self.siglip.path)):
            fill(model, matches)
        model.refresh_position_encodings()
        return model


def pin_public_files(sam: Path, siglip: Path) -> PublicFiles:
    """Record which files these are.

    Raises:
        BadInputError: one of them is missing.
    """
    return PublicFiles(*(PinnedPath(str(path.resolve()), weights_digest(path)) for path in (sam, siglip)))


def check_public_files(config: ModelConfig, sam: Path, siglip: Path) -> tuple[str, ...]:
    """Account for every tensor of both without building the model.

    Returns:
        One line for each file of which something is left out.

    Raises:
        BadInputError: one of them cannot be read or does not fit ``config``.
    """
    expected = build_model(config, device="meta")
    return tuple(note for matches in _matches(config, expected, sam, siglip) for note in matches.notes)


def weights_digest(path: Path) -> str:
    """SHA-256 of a file; of a folder, over the names and SHA-256 of its weights and its configuration.

    Raises:
        BadInputError: there are no weights.
    """
    if not path.is_dir():
        return digest(weight_files(path)[0])
    files = [file for file in (*weight_files(path), path / CONFIG_NAME) if file.is_file()]
    return hashlib.sha256(json.dumps([[file.name, digest(file)] for file in files]).encode()).hexdigest()


def _matches(config: ModelConfig, model: RSRefSeg, sam: Path, siglip: Path) -> Iterator[Matches]:
    """One file after the other: each is unmapped before the next is."""
    expected = model.state_dict()
    yield match_sam(sam, config, expected)
    yield match_siglip(siglip, config, expected)
