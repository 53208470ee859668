"""What RefSegRS and RISBench share: text files of expressions, one a line, and image files as masks."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rsrefseg.engines.errors import BadInputError

from .annotation_files import image_file_name, read_text
from .samples import Dataset, Sample

SPLITS = ("train", "val", "test")
_PREFIX, _SUFFIX = "output_phrase_", ".txt"
_IMAGE_SUFFIXES = (".tif", ".tiff", ".png", ".jpg", ".jpeg")


@dataclass(frozen=True, slots=True)
class Layout:
    """Where such a data set keeps its files.

    Attributes:
        name: of the format.
        image_folders: names of the image folder, the likeliest first.
        mask_folders: names of the mask folder, the likeliest first.
        suffix: of its image and mask files.
    """

    name: str
    image_folders: tuple[str, ...]
    mask_folders: tuple[str, ...]
    suffix: str


def phrase_lists(root: Path) -> dict[str, Path]:
    """The lists of expressions in a folder, by what their names say of the split."""
    found = sorted(path for path in root.glob(f"{_PREFIX}*{_SUFFIX}") if path.is_file())
    return {path.name[len(_PREFIX) : -len(_SUFFIX)]: path for path in found}


def read(layout: Layout, root: Path, images: Path | None) -> Dataset:
    """Read every line of ``output_phrase_{train,val,test}.txt``; no image and no mask is opened.

    A line is the name of an image and its mask (with or without suffix), white space, and the expression. Names repeat;
    a sample's id is its split and its line, ``train-17``. A missing image or mask is left to ``verify_samples`` and
    the check.

    Raises:
        BadInputError: a folder is missing, a list names an unknown split, or a line is not of that form.
    """
    lists = phrase_lists(root)
    for split, path in lists.items():
        if split not in SPLITS:
            raise BadInputError(f"'{path}' names the split '{split}', not {', '.join(SPLITS)}: rename or move it")
    image_folder = _Folder(images or _find(root, layout.image_folders, "image", ", or name it with --images"))
    mask_folder = _Folder(_find(root, layout.mask_folders, "mask"))
    samples = tuple(
        Sample(
            f"{split}-{number}",
            split,
            image_folder.file(name, layout.suffix),
            phrase,
            category="unknown",
            mask_source=mask_folder.file(name, layout.suffix),
        )
        for split in SPLITS
        if split in lists
        for number, name, phrase in _lines(lists[split])
    )
    return Dataset(root, layout.name, samples)


class _Folder:
    """A folder, listed once: asking for tens of thousands of files one by one is slow on network disks."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.names = {entry.name for entry in path.iterdir()}
        except OSError as error:
            raise BadInputError(f"cannot list the folder '{path}': {error.strerror or error}") from error

    def file(self, name: str, suffix: str) -> Path:
        """The file of that name, or of that name and a suffix; where there is none, the path it should have."""
        stem, dot, ending = name.rpartition(".")
        bare = stem if f"{dot}{ending}".lower() in _IMAGE_SUFFIXES else name
        likely = name if bare != name else bare + suffix
        candidates = (name, bare + suffix, *(bare + other for other in _IMAGE_SUFFIXES))
        return self.path / next((candidate for candidate in candidates if candidate in self.names), likely)


def _find(root: Path, names: tuple[str, ...], what: str, hint: str = "") -> Path:
    for name in names:
        if (root / name).is_dir():
            return root / name
    others = "".join(f", nor is there '{name}'" for name in names[1:])
    raise BadInputError(f"the {what} folder '{root / names[0]}' is missing{others}: complete the download{hint}")


def _lines(path: Path) -> Iterator[tuple[int, str, str]]:
    """Line number, file name and expression of every line that is not blank."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        words = line.split(maxsplit=1)
        name = f"line {number} of '{path}'"
        if len(words) == 1:
            raise BadInputError(f"{name} is not a file name and an expression: {line.strip()[:40]!r}")
        if words:
            yield number, str(image_file_name(words[0], name)), words[1].strip()
