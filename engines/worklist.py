"""The work list of a batch: its images, and a folder of its own for the results of each."""

import csv
import glob
import hashlib
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from .errors import BadInputError
from .images.names import is_remote
from .results.provenance import source_name

# What a folder is searched for, in lower case. Other formats of GDAL take a list or a glob.
IMAGE_SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".ppm", ".tif", ".tiff", ".jp2", ".j2k", ".vrt", ".ntf", ".nitf",
)  # fmt: skip
LIST_SUFFIXES = (".txt", ".csv")
_CSV_COLUMN = "image"
_REMOTE = re.compile(r"/vsi|[a-z][a-z0-9+]*://|[A-Z][A-Z0-9_]+:\S[^:]*:")
_DIGEST_CHARACTERS = 8


class Item(NamedTuple):
    """An image of a work list.

    Attributes:
        image: a file, or another name that GDAL opens.
        place: folder of its results, relative to the folder of all results.
    """

    image: str
    place: str


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the images and the phrases of a command line.

    The first argument is an image. So is each of the next that is a file, a folder, a URL or a matching glob, or has
    the suffix of an image or a list, so that no name of a file is ever asked as a phrase.

    Raises:
        BadInputError: no phrase is left, or an image follows a phrase.
    """
    first, *others = arguments
    if not first.strip():
        raise BadInputError("the image has an empty name: give a file, a folder or a list")
    images = [first, *itertools.takewhile(_names_images, others)]
    phrases = others[len(images) - 1 :]
    if late := [phrase for phrase in phrases if _names_images(phrase)]:
        raise BadInputError(f"'{late[0]}' names images and follows a phrase: give images first, then phrases")
    if not phrases:
        named = " and ".join(f"'{image}'" for image in images[:3])
        raise BadInputError(f'no phrase given: {named} name images; say what to look for, e.g. "the stadium"')
    return images, phrases


def is_batch(images: Sequence[str]) -> bool:
    """Return whether images are several, or a folder, a list or a glob."""
    return len(images) > 1 or Path(images[0]).is_dir() or _is_list(images[0]) or _is_glob(images[0])


def work_list(images: Sequence[str], out: Path, shard: str | None = None) -> list[Item]:
    """Return the images of a batch in a fixed order, each once.

    The place of an image is its path relative to the folder, to the glob's folder or to the list's folder; with several
    arguments, to the current folder. Images elsewhere have their absolute path.

    Args:
        images: files, folders (searched for ``IMAGE_SUFFIXES``), globs, ``.txt`` lists (a name a line, ``#`` for
            comments), ``.csv`` lists (a column ``image``), and names that GDAL opens. Names in a list are relative to
            its folder.
        out: folder of the results, which is not searched.
        shard: ``K/N`` for the K-th of N interleaved parts, from 1; all by default.

    Raises:
        BadInputError: a list cannot be read, no image is found, or ``shard`` is not such a part.
    """
    part = _part_of(shard)
    items: dict[str, Item] = {}
    places: set[str] = set()
    for argument in images:
        root, names = _expanded(argument, out.resolve())
        if not names:
            raise BadInputError(
                f"no image in '{argument}' (results in --out are left out): folders are searched for"
                f" {', '.join(IMAGE_SUFFIXES)}"
            )
        for name in names:
            key = name if is_remote(name) else os.path.abspath(name)  # noqa: PTH100 (links stay)
            if key in items:
                continue
            place = _place(name, Path.cwd() if len(images) > 1 else root)
            place = place if place not in places else f"{place}-{_digest(key)}"
            places.add(place)
            items[key] = Item(name, place)
    return list(items.values())[part]


def _names_images(argument: str) -> bool:
    known = argument.lower().endswith((*IMAGE_SUFFIXES, *LIST_SUFFIXES))
    return known or _exists(argument) or _REMOTE.match(argument) is not None or _matches(argument)


def _exists(name: str) -> bool:
    return os.path.exists(name)  # noqa: PTH110 (a long phrase is not an error)


def _matches(argument: str) -> bool:
    return _is_glob(argument) and next(_files(argument), None) is not None


def _files(pattern: str) -> Iterator[str]:
    return filter(os.path.isfile, glob.iglob(pattern, recursive=True))  # noqa: PTH207 (of any root, with "**")


def _is_glob(name: str) -> bool:
    return glob.has_magic(name) and not _exists(name) and not is_remote(name)


def _is_list(name: str) -> bool:
    return name.lower().endswith(LIST_SUFFIXES) and not is_remote(name)


def _expanded(argument: str, out: Path) -> tuple[Path, list[str]]:
    """Return the images of an argument, and the folder that their places are relative to."""
    if is_remote(argument):
        return Path.cwd(), [argument]
    if Path(argument).is_dir():
        found = (name for name in _below(Path(argument), out) if name.lower().endswith(IMAGE_SUFFIXES))
        return Path(argument), sorted(found)
    if _is_glob(argument):
        root = Path(*_before_magic(Path(argument)))
        return root, sorted(name for name in _files(argument) if not Path(name).resolve().is_relative_to(out))
    if _is_list(argument):
        folder = Path(argument).parent
        names = _csv(argument) if argument.lower().endswith(".csv") else _lines(argument)
        return folder, [name if _REMOTE.match(name) else str(folder / name) for name in names]
    return Path.cwd(), [argument]


def _below(folder: Path, out: Path) -> Iterator[str]:
    """Yield the visible files below a folder, without the results."""
    for root, folders, files in os.walk(folder):
        inside = Path(root)
        folders[:] = [name for name in folders if name[0] != "." and (inside / name).resolve() != out]
        yield from (str(inside / name) for name in files if name[0] != ".")


def _before_magic(pattern: Path) -> Iterator[str]:
    for part in pattern.parts:
        if glob.has_magic(part):
            return
        yield part


def _lines(path: str) -> list[str]:
    lines = [line.strip() for line in _text(path).splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def _csv(path: str) -> list[str]:
    rows = csv.DictReader(_text(path).splitlines())
    try:
        if _CSV_COLUMN not in (rows.fieldnames or ()):
            raise BadInputError(f"the list '{path}' has no column '{_CSV_COLUMN}': name it in the first line")
        return [row[_CSV_COLUMN] for row in rows if row[_CSV_COLUMN]]
    except csv.Error as error:
        raise BadInputError(f"the list '{path}' is not a CSV file that can be read: {error}") from error


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise BadInputError(f"cannot read the list '{path}': {error.strerror}") from error


def _place(name: str, root: Path) -> str:
    if is_remote(name):
        shown = source_name(name)
        parts = (re.sub(r"[^\w.@+=-]+", "-", part).strip("-") for part in shown.replace("://", "/").split("/"))
        place = "/".join(part[:100] for part in parts if part.strip("."))
        return place if place == name.replace("://", "/") else f"{place}-{_digest(name)}"
    path, folder = (Path(os.path.abspath(one)) for one in (name, root))  # noqa: PTH100 (links stay)
    return str(path.relative_to(folder if path.is_relative_to(folder) else path.anchor))


def _part_of(shard: str | None) -> slice:
    if shard is None:
        return slice(None)
    part = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", shard)
    if part is None or not 1 <= int(part[1]) <= int(part[2]):
        raise BadInputError(f"'{shard}' is not a shard: use K/N with K from 1 to N, e.g. 3/8")
    return slice(int(part[1]) - 1, None, int(part[2]))


def _digest(name: str) -> str:
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:_DIGEST_CHARACTERS]
