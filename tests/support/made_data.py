"""Small data sets in the RRSIS-D layout, and functions that damage them."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rsrefseg.data.refs import INSTANCES_FILE, REFS_FILE
from rsrefseg.data.rrsisd import IMAGE_FOLDER
from rsrefseg.data.rrsisd_writer import Referral, write_rrsisd
from rsrefseg.engines.errors import BadInputError

SPLITS = ("train", "train", "val", "test")
HEIGHT, WIDTH = 40, 56


class Bomb:
    """Creates a folder if it is unpickled unsafely."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.folder,)


def referral(phrase: str = "the ship") -> Referral:
    """Return a referral of a ship of 17x25 pixels."""
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[5:30, 3:20] = True
    return Referral(phrase, "ship", mask)


def write_scenes(root: Path) -> list[Referral]:
    """Write four images with two expressions each and classes in unsorted order; return the referrals."""
    noise = np.random.default_rng(7)
    scenes = []
    for number, split in enumerate(SPLITS):
        image = noise.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        ragged = Referral(f"a würfel {number}", "bridge", noise.random((HEIGHT, WIDTH)) > 0.6)
        scenes.append((split, image, [referral(f"the ship {number}"), ragged]))
    write_rrsisd(root, scenes)
    return [referral for _, _, referrals in scenes for referral in referrals]


def refs_path(root: Path) -> Path:
    return root / "rrsisd" / REFS_FILE


def instances_path(root: Path) -> Path:
    return root / "rrsisd" / INSTANCES_FILE


def image_path(root: Path, number: int) -> Path:
    return root / IMAGE_FOLDER / f"{number:05d}.jpg"


def change_instances(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(instances_path(root).read_text())
    change(content)
    instances_path(root).write_text(json.dumps(content))


def change_refs(root: Path, change: Callable[[list[dict[str, Any]]], object]) -> None:
    content = pickle.loads(refs_path(root).read_bytes())
    change(content)
    refs_path(root).write_bytes(pickle.dumps(content))


def respell(number: int, text: str) -> Callable[[Path], None]:
    """Change the phrase of a ref."""
    return lambda root: change_refs(root, lambda refs: refs[number]["sentences"][0].update(sent=text))


def refusal(action: Callable[[], object]) -> str:
    """Return the message of a BadInputError."""
    with pytest.raises(BadInputError) as caught:
        action()
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) < 600
    return line
