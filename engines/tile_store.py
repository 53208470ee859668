"""Keeps the results of finished tiles in files, so that an interrupted run can be continued."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .system.files import atomic_file, atomic_write_text


class TileStore:
    """Arrays in the files of a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def stored(self, name: str) -> Any:
        """Return an array of this or of an interrupted run, to read and to write; ``None`` if there is none."""
        path = self._folder / f"{name}.npy"
        return np.load(path, mmap_mode="r+") if path.exists() else None

    def array(self, name: str, shape: tuple[int, ...], dtype: type, fill: bool = False) -> Any:
        """Return the stored array, or a new one of zeros or, with ``fill``, of ones.

        Raises:
            RSRefSegError: the disk is full or the folder cannot be written. Otherwise the disk has room for all of the
                array: a write to it would kill the process if not.
        """
        if (found := self.stored(name)) is not None:
            return found
        path = self._folder / f"{name}.npy"
        with atomic_file(path, durable=False) as temporary:
            made = np.lib.format.open_memmap(temporary, "w+", dtype, shape)
            with temporary.open("r+b") as stream:
                os.posix_fallocate(stream.fileno(), 0, temporary.stat().st_size)
            for row in made if fill else ():
                row[:] = True
        return made


@contextlib.contextmanager
def open_store(folder: Path, settings: dict[str, Any], resume: bool) -> Iterator[TileStore]:
    """Yield a store in a folder that is removed at the end, unless an error or a kill interrupts the run.

    Args:
        folder: the folder; what an interrupted run left there is removed if it is not used.
        settings: what the results depend on, as JSON values.
        resume: use what an interrupted run with the same settings left.

    Raises:
        RSRefSegError: the folder cannot be written.
    """
    marker, text = folder / "settings.json", json.dumps(settings, sort_keys=True) + "\n"
    if not (resume and marker.exists() and marker.read_text(encoding="utf-8") == text):
        shutil.rmtree(folder, ignore_errors=True)
        atomic_write_text(marker, text)
    store = TileStore(folder)
    try:
        yield store
    except BaseException:
        if store.stored("logits") is None:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
