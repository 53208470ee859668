"""What RefSegRS and RISBench share: text files of expressions, one a line, and image files as masks."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rsrefseg.engines.errors import BadInputError

from .mask_sources import FileMask
from .paths import image_file_name
from .samples import Dataset, Sample

SPLITS = ("train", "val", "test")
_PREFIX, _SUFFIX = "output_phrase_", ".txt"
_IMAGE_SUFFIXES = (".tif", ".tiff", ".png", ".jpg", ".jpeg")
# The largest published list is below 10 MB.
_MAX_LIST_BYTES = 256 << 20


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


def has_lists(path: Path) -> bool:
    """Whether a folder holds any list of expressions."""
    return path.is_dir() and any(_lists(path))


def read(layout: Layout, root: Path, images: Path | None) -> Dataset:
    """Read every line of ``output_phrase_{train,val,test}.txt``; no image and no mask is opened.

    A line is the name of an image and its mask (with or without suffix), white space, and the expression. Names repeat;
    a sample's id is its split and its line, ``train-17``. An image or mask that is missing is left for
    ``verify_images`` and the check to report.

    Raises:
        BadInputError: a folder is missing, a list names an unknown split, or a line is not of that form.
    """
    image_folder = _Folder(images or _folder(root, layout.image_folders, "image", ", or name it with --images"))
    mask_folder = _Folder(_folder(root, layout.mask_folders, "mask"))
    samples: list[Sample] = []
    for split, path in sorted(_splits(root).items(), key=lambda item: SPLITS.index(item[0])):
        for number, file, phrase in _lines(path):
            samples.append(
                Sample(
                    sample_id=f"{split}-{number}",
                    split=split,
                    image_path=image_folder.find(file, layout.suffix),
                    phrase=phrase,
                    category="unknown",
                    mask_source=FileMask(mask_folder.find(file, layout.suffix)),
                )
            )
    return Dataset(root=root, name=layout.name, samples=tuple(samples))


class _Folder:
    """A folder, listed once: asking for tens of thousands of files one by one is slow on network disks."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.names = {entry.name for entry in path.iterdir()}
        except OSError as error:
            raise BadInputError(f"cannot list the folder '{path}': {error.strerror or error}") from error

    def find(self, file: str, suffix: str) -> Path:
        """The file of that name, or of that name and a suffix; where there is none, the path it should have."""
        if file in self.names:
            return self.path / file
        stem, dot, ending = file.rpartition(".")
        bare = stem if f"{dot}{ending}".lower() in _IMAGE_SUFFIXES else file
        for candidate in (bare + suffix, *(bare + other for other in _IMAGE_SUFFIXES)):
            if candidate in self.names:
                return self.path / candidate
        return self.path / (file if bare != file else bare + suffix)


def _lists(root: Path) -> Iterator[Path]:
    return (path for path in root.glob(f"{_PREFIX}*{_SUFFIX}") if path.is_file())


def _splits(root: Path) -> dict[str, Path]:
    lists = {path.name[len(_PREFIX) : -len(_SUFFIX)]: path for path in sorted(_lists(root))}
    for split, path in lists.items():
        if split not in SPLITS:
            raise BadInputError(
                f"'{path}' names the split '{split}', not {', '.join(SPLITS)}: rename it or move it away"
            )
    return lists


def _folder(root: Path, names: tuple[str, ...], what: str, way_out: str = "") -> Path:
    for name in names:
        if (root / name).is_dir():
            return root / name
    others = "".join(f", nor is there '{name}'" for name in names[1:])
    raise BadInputError(f"the {what} folder '{root / names[0]}' is missing{others}: complete the download{way_out}")


def _lines(path: Path) -> Iterator[tuple[int, str, str]]:
    """Line number, file name and expression of every line that is not blank."""
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        words = line.split(maxsplit=1)
        name = f"line {number} of '{path}'"
        if len(words) == 1:
            raise BadInputError(f"{name} is no file name and expression: {line.strip()[:40]!r}")
        if words:
            yield number, str(image_file_name(words[0], name)), words[1].strip()


def _read_text(path: Path) -> str:
    try:
        size = path.stat().st_size
        if size > _MAX_LIST_BYTES:
            raise BadInputError(f"'{path}' has {size >> 20} MiB; a list may have {_MAX_LIST_BYTES >> 20} MiB")
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise BadInputError(f"cannot read '{path}': {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise BadInputError(f"'{path}' is no UTF-8 text ({error.reason})") from error
