"""Reads RefSegRS and RISBench: text files with one expression per line, and image files as masks."""

from pathlib import Path

from rsrefseg.engines.errors import BadInputError

from .annotation_files import image_file_name, read_lines
from .folders import ListedFolder, find_folder, image_folder
from .samples import Sample

SPLITS = ("train", "val", "test")
_PREFIX, _SUFFIX = "output_phrase_", ".txt"


def has_lists(root: Path) -> bool:
    """Return whether a folder is a RefSegRS data set, even if a part is missing; also true for RISBench."""
    return bool(_lists(root))


def is_risbench(root: Path) -> bool:
    """Return whether a folder is a RISBench data set; if its folders have RefSegRS's names, the files decide."""
    if not has_lists(root):
        return False
    if any((root / folder).is_dir() for folder in ("img_rgb", "mask")):
        return True
    shared = next((root / folder for folder in ("images", "masks") if (root / folder).is_dir()), None)
    return shared is not None and any(shared.glob("*.png"))


def read_refsegrs(root: Path, images: Path | None) -> tuple[Sample, ...]:
    """Read every line of a RefSegRS folder without opening images or masks.

    A line of ``output_phrase_{train,val,test}.txt`` is the name of an image and its mask (with or without suffix),
    white space, and the expression. Names repeat, so a sample's id is its split and line number, e.g. ``train-17``.
    ``verify_samples`` and ``check_dataset`` report missing images and masks.

    Raises:
        BadInputError: a folder is missing, a list names an unknown split, or a line has another form.
    """
    return _read(root, images, ("images",), ("masks",), ".tif")


def read_risbench(root: Path, images: Path | None) -> tuple[Sample, ...]:
    """Read every line of a RISBench folder; see ``read_refsegrs``."""
    return _read(root, images, ("img_rgb", "images"), ("mask", "masks"), ".png")


def _lists(root: Path) -> dict[str, Path]:
    """Return the lists of expressions in a folder by the split in their names."""
    found = sorted(path for path in root.glob(f"{_PREFIX}*{_SUFFIX}") if path.is_file())
    return {path.name[len(_PREFIX) : -len(_SUFFIX)]: path for path in found}


def _read(
    root: Path, images: Path | None, image_folders: tuple[str, ...], mask_folders: tuple[str, ...], suffix: str
) -> tuple[Sample, ...]:
    """Read the lists; the most likely folders come first, and ``suffix`` is the one of image and mask files."""
    lists = _lists(root)
    for split, path in lists.items():
        if split not in SPLITS:
            raise BadInputError(f"'{path}' names the split '{split}', not {', '.join(SPLITS)}: rename or move it")
    found = image_folder(root, images, *image_folders), find_folder(root, mask_folders, "mask")
    image_files, mask_files = (ListedFolder(folder, suffix) for folder in found)
    samples = []
    for split in (split for split in SPLITS if split in lists):
        for number, line_name, line in read_lines(lists[split]):
            words = line.split(maxsplit=1)
            if len(words) < 2:
                raise BadInputError(f"{line_name} is not a file name and an expression: {line.strip()[:40]!r}")
            name, phrase = str(image_file_name(words[0], line_name)), words[1].strip()
            image, mask = image_files.file(name), mask_files.file(name)
            samples.append(Sample(f"{split}-{number}", split, image, phrase, category="unknown", mask_source=mask))
    return tuple(samples)
