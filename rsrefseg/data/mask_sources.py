"""Where a sample's mask comes from. Made when a data set is opened, read when the mask is wanted."""

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rsrefseg.engines.errors import BadInputError

from .headers import size_in_header
from .masks import BoolMask, Rle, compressed_rle, decode_rle, encode_mask, mask_size
from .outlines import Segmentation, fingerprint, merged_rle


class MaskSource(ABC):
    """One mask, not yet read. Equal sources give equal masks.

    Every method takes ``name``, what the mask belongs to, for the error line, and raises BadInputError where the
    mask is missing or broken.
    """

    __slots__ = ()

    @property
    def file(self) -> Path | None:
        """The file that has to be there, if the mask is one."""
        return None

    @property
    def has_target(self) -> bool:
        """False where the annotation says that nothing is meant: an empty mask is the right one then."""
        return True

    @abstractmethod
    def size(self, name: str) -> tuple[int, int]:
        """Height and width, without decoding the mask where that can be avoided."""

    @abstractmethod
    def decode(self, name: str) -> BoolMask:
        """The mask, (H, W) bool."""

    @abstractmethod
    def fingerprint(self, name: str) -> str:
        """A text that changes when the mask does."""

    def rle(self, name: str) -> Rle:
        """The mask as ``{"size": [H, W], "counts": str}``, compressed and checked."""
        return encode_mask(self.decode(name))


@dataclass(frozen=True, slots=True)
class RleMask(MaskSource):
    """Run lengths that the annotation holds.

    Attributes:
        runs: ``{"size": [H, W], "counts": bytes | str | list}``.
    """

    runs: Rle

    def size(self, name: str) -> tuple[int, int]:  # noqa: D102 (told by MaskSource, here and below)
        return mask_size(self.runs, name)

    def decode(self, name: str) -> BoolMask:  # noqa: D102
        return decode_rle(self.runs, name)

    def fingerprint(self, name: str) -> str:  # noqa: D102
        mask_size(self.runs, name)
        counts = self.runs["counts"]
        return counts.decode("ascii", errors="replace") if isinstance(counts, bytes) else str(counts)

    def rle(self, name: str) -> Rle:  # noqa: D102
        return compressed_rle(self.runs, name)


@dataclass(frozen=True, slots=True)
class FileMask(MaskSource):
    """An image file; every pixel that is not black is foreground.

    Attributes:
        path: any picture ``read_image`` reads; of any number of channels.
    """

    path: Path

    @property
    def file(self) -> Path:  # noqa: D102
        return self.path

    def size(self, name: str) -> tuple[int, int]:  # noqa: D102
        stated = size_in_header(self.path)
        if stated is not None:
            return stated
        height, width = self.decode(name).shape
        return height, width

    def decode(self, name: str) -> BoolMask:  # noqa: D102
        from rsrefseg.engines.images.images import read_image

        try:
            picture = read_image(self.path)
        except BadInputError as error:
            raise BadInputError(f"{name}: its mask cannot be read: {error}") from error
        return np.asarray(picture.any(axis=2))

    def fingerprint(self, name: str) -> str:  # noqa: D102
        try:
            with self.path.open("rb") as stream:
                return hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise BadInputError(f"{name}: cannot read its mask '{self.path}': {error.strerror or error}") from error


@dataclass(frozen=True, slots=True)
class OutlineMask(MaskSource):
    """The union of segmentations: polygons, or polygons and run lengths.

    Attributes:
        parts: as ``as_segmentation`` gives them, at least one.
        height: of the image they are drawn on.
        width: as above.
    """

    parts: tuple[Segmentation, ...]
    height: int
    width: int

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("an OutlineMask needs at least one part; NoTarget has none")

    def size(self, name: str) -> tuple[int, int]:  # noqa: D102
        return self.height, self.width

    def decode(self, name: str) -> BoolMask:  # noqa: D102
        return decode_rle(self.rle(name), name)

    def fingerprint(self, name: str) -> str:  # noqa: D102
        return f"{self.height}x{self.width} {fingerprint(self.parts)}"

    def rle(self, name: str) -> Rle:  # noqa: D102
        return merged_rle(self.parts, self.height, self.width, name)


@dataclass(frozen=True, slots=True)
class NoTarget(MaskSource):
    """The mask of an expression that refers to nothing in its image: empty, and rightly so.

    Attributes:
        height: of the image.
        width: of the image.
    """

    height: int
    width: int

    @property
    def has_target(self) -> bool:  # noqa: D102
        return False

    def size(self, name: str) -> tuple[int, int]:  # noqa: D102
        return self.height, self.width

    def decode(self, name: str) -> BoolMask:  # noqa: D102
        return np.zeros((self.height, self.width), dtype=np.bool_)

    def fingerprint(self, name: str) -> str:  # noqa: D102
        return f"{self.height}x{self.width} no target"
