"""Reads RefSegRS and RISBench: text files with one expression per line, and image files as masks."""

from pathlib import Path

from rsrefseg.engines.errors import BadInputError

from .annotation_files import image_file_name, read_lines
from .samples import Sample

SPLITS = ("train", "val", "test")
_PREFIX, _SUFFIX = "output_phrase_", ".txt"
_IMAGE_SUFFIXES = (".tif", ".tiff", ".png", ".jpg", ".jpeg")


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
    image_folder = _Folder(images or _find(root, image_folders, "image", ", or name it with --images"), suffix)
    mask_folder = _Folder(_find(root, mask_folders, "mask"), suffix)
    samples = []
    for split in (split for split in SPLITS if split in lists):
        for number, line_name, line in read_lines(lists[split]):
            words = line.split(maxsplit=1)
            if len(words) < 2:
                raise BadInputError(f"{line_name} is not a file name and an expression: {line.strip()[:40]!r}")
            name, phrase = str(image_file_name(words[0], line_name)), words[1].strip()
            image, mask = image_folder.file(name), mask_folder.file(name)
            samples.append(Sample(f"{split}-{number}", split, image, phrase, category="unknown", mask_source=mask))
    return tuple(samples)


class _Folder:
    """A folder that is listed once, because many single look-ups are slow on network disks."""

    def __init__(self, path: Path, suffix: str) -> None:
        self.path, self.suffix = path, suffix
        try:
            self.names = {entry.name for entry in path.iterdir()}
        except OSError as error:
            raise BadInputError(f"cannot list the folder '{path}': {error.strerror or error}") from error

    def file(self, name: str) -> Path:
        """Return the file of that name with or without suffix; if there is none, its expected path."""
        stem, dot, ending = name.rpartition(".")
        bare = stem if f"{dot}{ending}".lower() in _IMAGE_SUFFIXES else name
        likely = name if bare != name else bare + self.suffix
        candidates = (name, bare + self.suffix, *(bare + other for other in _IMAGE_SUFFIXES))
        return self.path / next((candidate for candidate in candidates if candidate in self.names), likely)


def _find(root: Path, names: tuple[str, ...], what: str, hint: str = "") -> Path:
    for name in names:
        if (root / name).is_dir():
            return root / name
    others = "".join(f", nor is there '{name}'" for name in names[1:])
    raise BadInputError(f"the {what} folder '{root / names[0]}' is missing{others}: complete the download{hint}")
