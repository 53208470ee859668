"""Finds the image and mask folders of a data set, and files in them whose suffix the annotations do not state."""

from pathlib import Path

from rsrefseg.engines.errors import BadInputError

_IMAGE_SUFFIXES = (".tif", ".tiff", ".png", ".jpg", ".jpeg")


class ListedFolder:
    """A folder that is listed once, because many single look-ups are slow on network disks.

    ``suffix`` is the most likely suffix of its files.
    """

    def __init__(self, path: Path, suffix: str) -> None:
        self.path, self.suffix = path, suffix
        try:
            self.names = {entry.name for entry in path.iterdir()}
        except OSError as error:
            raise BadInputError(f"cannot list the folder '{path}': {error.strerror or error}") from error

    def file(self, name: str) -> Path:
        """Return the file of that name with its own, another or no suffix; if there is none, its expected path."""
        stem, dot, ending = name.rpartition(".")
        bare = stem if f"{dot}{ending}".lower() in _IMAGE_SUFFIXES else name
        likely = name if bare != name else bare + self.suffix
        candidates = (name, bare + self.suffix, *(bare + other for other in _IMAGE_SUFFIXES))
        return self.path / next((candidate for candidate in candidates if candidate in self.names), likely)


def find_folder(root: Path, names: tuple[str, ...], what: str, hint: str = "") -> Path:
    """Return the first of the folders ``names`` in ``root``; ``what`` and ``hint`` are parts of the message.

    Raises:
        BadInputError: there is none.
    """
    for name in names:
        if (root / name).is_dir():
            return root / name
    others = "".join(f", nor is there '{name}'" for name in names[1:])
    raise BadInputError(f"the {what} folder '{root / names[0]}' is missing{others}: complete the download{hint}")


def image_folder(root: Path, images: Path | None, *names: str) -> Path:
    """Return ``images``, or the first of the folders ``names`` in ``root``.

    Raises:
        BadInputError: there is none.
    """
    return images or find_folder(root, names, "image", ", or name it with --images")
