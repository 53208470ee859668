"""What every data set looks like to the rest: samples of one image, one phrase and one mask."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from rsrefseg.engines.errors import BadInputError

from .mask_sources import MaskSource
from .masks import BoolMask, Rle


@dataclass(frozen=True, slots=True)
class Sample:
    """One referring expression.

    Attributes:
        sample_id: unique within its data set.
        split: "train", "val", "test", or whatever the data set calls it.
        image_path: the image's file.
        phrase: the expression, as the data set gives it.
        category: class name of the object referred to.
        mask_source: its mask, not yet read: run lengths, polygons, or a file. Samples of one object have equal ones.
    """

    sample_id: str
    split: str
    image_path: Path
    phrase: str
    category: str
    mask_source: MaskSource = field(repr=False, hash=False)

    @property
    def mask_size(self) -> tuple[int, int]:
        """Height and width of the mask, without decoding it where that can be avoided.

        Raises:
            BadInputError: the mask is missing or broken.
        """
        return self.mask_source.size(self._name)

    @property
    def rle(self) -> Rle:
        """The mask as run lengths, ``{"size": [H, W], "counts": str}``, compressed and checked.

        Raises:
            BadInputError: the mask is missing or broken.
        """
        return self.mask_source.rle(self._name)

    @property
    def mask_fingerprint(self) -> str:
        """A text that changes when the mask does; of a mask that is a file, from the file's bytes.

        Raises:
            BadInputError: the mask's file is missing.
        """
        return self.mask_source.fingerprint(self._name)

    def mask(self) -> BoolMask:
        """The mask, (H, W) bool.

        Raises:
            BadInputError: the mask is missing or broken.
        """
        return self.mask_source.decode(self._name)

    @property
    def _name(self) -> str:
        return f"sample '{self.sample_id}'"


@dataclass(frozen=True, slots=True)
class Dataset:
    """All samples of one data set, in the order of its files.

    Attributes:
        root: the folder or file that was opened.
        name: the format it was recognised as.
        samples: every sample of every split.
    """

    root: Path
    name: str
    samples: tuple[Sample, ...]

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits, in order of first appearance."""
        return tuple(dict.fromkeys(sample.split for sample in self.samples))

    @property
    def categories(self) -> tuple[str, ...]:
        """Class names, sorted."""
        return tuple(sorted({sample.category for sample in self.samples}))

    def split(self, name: str) -> tuple[Sample, ...]:
        """The samples of one split.

        Raises:
            BadInputError: there are none; the line names the splits that exist.
        """
        chosen = tuple(sample for sample in self.samples if sample.split == name)
        if not chosen:
            have = ", ".join(f"'{split}'" for split in self.splits) or "none at all"
            raise BadInputError(f"the data set '{self.root}' has no sample in the split '{name}'; its splits: {have}")
        return chosen


def open_dataset(path: Path | str, images: Path | None = None) -> Dataset:
    """Open a data set of any known format, recognised from what lies there. Reads annotations only, no image.

    Args:
        path: the data set's folder, or its file for formats that are one file.
        images: folder of the images where it is not the format's own.

    Raises:
        BadInputError: nothing is there, it is of no known format, or its annotations are broken.
    """
    from .formats import read_dataset

    return read_dataset(Path(path), images)


def group_by_image(samples: Iterable[Sample]) -> tuple[tuple[Sample, ...], ...]:
    """Samples that share an image, together; images in order of first appearance, samples in the given order."""
    groups: dict[Path, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.image_path, []).append(sample)
    return tuple(tuple(group) for group in groups.values())
