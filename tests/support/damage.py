"""Images that cannot be read, and files with changed bytes."""

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rsrefseg.engines.errors import BadInputError
from rsrefseg.engines.images.images import read_image, read_scene


def refused(path: Path | str, fact: str, **options: Any) -> None:
    """Assert that ``read_scene`` refuses a file in one line that contains ``fact``."""
    with pytest.raises(BadInputError) as refusal:
        read_scene(path, **options)
    assert fact in str(refusal.value)
    assert "\n" not in str(refusal.value)


def read_mutations(path: Path, whole: bytes, random: np.random.Generator, count: int, reach: int) -> None:
    """Assert that copies of a file with four changed bytes among the first ``reach`` are read or refused."""
    for _ in range(count):
        data = bytearray(whole)
        for position in random.integers(0, reach, 4):
            data[position] = random.integers(0, 256)
        path.write_bytes(data)
        with contextlib.suppress(BadInputError):  # nothing else is raised
            read = read_image(path, max_pixels=1_000_000)
            assert (read.dtype, read.ndim, read.shape[2]) == (np.uint8, 3, 3)
