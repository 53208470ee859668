"""A folder of scenes for batches, and what a batch wrote."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rsrefseg.engines.batch import infer_batch
from rsrefseg.engines.infer import InferOptions
from tests.support.rasters import write_raster

PHRASES = ("the red square", "a blue square")


def write_scenes(folder: Path, count: int) -> Path:
    """Write photos and rasters in two folders, with the same names in both."""
    random = np.random.default_rng(0)
    for number in range(count):
        place = folder / ("north", "south")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 80, (40, 48, 3), np.uint8)
        left, top = random.integers(0, 24, 2)
        pixels[top : top + 14, left : left + 14, number % 3] = 255
        name = f"scene{number // 2:02}"
        if number % 5:
            Image.fromarray(pixels).save(place / f"{name}.png")
        else:
            write_raster(place / f"{name}.tif", pixels.transpose(2, 0, 1))
    return folder


def batch_job(scenes: str, bundle: str, out: str, resume: bool = False) -> None:
    """Run a batch; a function of a module, for another process."""
    infer_batch([scenes], PHRASES, Path(bundle), Path(out), InferOptions("onnxruntime"), resume)


def table(path: Path) -> list[dict[str, str]]:
    """Return the rows of a table."""
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def written(out: Path) -> dict[str, Any]:
    """Return what a batch wrote: all files by name, and the table without its times."""
    entries = (path for path in out.rglob("*") if path.is_file())
    files: dict[str, Any] = {str(path.relative_to(out)): path.read_bytes() for path in entries}
    assert files.pop("results.csv")
    rows = table(out / "results.csv")
    return files | {"rows": [{**row, "seconds": ""} for row in rows]}
