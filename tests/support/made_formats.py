"""Tiny data sets in every layout; those with mask files or polygons have three images of 24x32."""

import json
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.support.made_data import write_scenes

HEIGHT, WIDTH = 24, 32
# Split, name, expression; the first image has two expressions and one mask.
LINES = (
    ("train", "7", "the ship"),
    ("train", "7", "the vessel, at the quay"),
    ("val", "13", "a würfel"),
    ("test", "4", "the bridge"),
)


def picture(number: int) -> Image.Image:
    noise = np.random.default_rng(number)
    return Image.fromarray(noise.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))


def mask_of(number: int) -> np.ndarray:
    """Return the content of the mask file of an image."""
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[number : number + 6, 2:20] = True
    return mask


def write_lists(root: Path, images: str, masks: str, suffix: str, named: str = "") -> Path:
    """Write RefSegRS or RISBench; ``named`` is the suffix of names in the lists."""
    (root / images).mkdir(parents=True)
    (root / masks).mkdir(exist_ok=True)
    for number in {int(name) for _, name, _ in LINES}:
        picture(number).save(root / images / f"{number}{suffix}")
        Image.fromarray(mask_of(number).astype(np.uint8) * 255).save(root / masks / f"{number}{suffix}")
    for split in ("train", "val", "test"):
        lines = [f"{name}{named} {phrase}\n" for of, name, phrase in LINES if of == split]
        (root / f"output_phrase_{split}.txt").write_text("".join(lines), encoding="utf-8")
    return root


write_refsegrs = partial(write_lists, images="images", masks="masks", suffix=".tif")
write_risbench = partial(write_lists, images="img_rgb", masks="mask", suffix=".png", named=".png")

SQUARE = [2, 3, 12, 3, 12, 9, 2, 9]
TRIANGLE = [20, 4, 30, 4, 30, 14]
LOW = [4.5, 15, 28.25, 15, 28, 22, 4, 22]


def annotation(identity: int, image_id: int, segmentation: Any, category: int = 1) -> dict[str, Any]:
    return {"id": identity, "image_id": image_id, "category_id": category, "segmentation": segmentation}


def ref(identity: int, split: str, image_id: int, ann_id: Any, *phrases: str) -> dict[str, Any]:
    return {
        "ref_id": identity,
        "split": split,
        "image_id": image_id,
        "ann_id": ann_id,
        "category_id": 2,
        "file_name": f"{image_id}.jpg",
        "sentences": [{"raw": phrase, "sent": phrase} for phrase in phrases],
    }


def nwpu_instances() -> dict[str, Any]:
    size = {"height": HEIGHT, "width": WIDTH}
    return {
        "images": [{"id": number, "file_name": f"{number}.jpg"} | size for number in (1, 2, 3)],
        "annotations": [
            annotation(1, 1, [SQUARE]),
            annotation(2, 1, [TRIANGLE, LOW], category=2),
            annotation(3, 2, {"size": [HEIGHT, WIDTH], "counts": [0, HEIGHT * 2, HEIGHT * (WIDTH - 2)]}),
            annotation(4, 3, []),
        ],
        "categories": [{"id": 1, "name": "ship"}, {"id": 2, "name": "bridge"}],
    }


def nwpu_refs() -> list[dict[str, Any]]:
    return [
        ref(1, "train", 1, 1, "all ships"),
        ref(2, "train", 1, 2, "all ships", "the pair"),  # with 1: a union of masks
        ref(3, "val", 2, 3, "the left edge"),
        ref(4, "test", 3, 4, "the absent plane"),  # an annotation without outline: no target
        ref(5, "test", 3, -1, "the absent car"),  # no annotation at all: no target either
    ]


def write_nwpu(
    root: Path,
    prefix: str = "new_",
    images: str = "image",
    instances: dict[str, Any] | None = None,
    refs: list[dict[str, Any]] | None = None,
) -> Path:
    (root / images).mkdir(parents=True)
    for number in (1, 2, 3):
        picture(number).save(root / images / f"{number}.jpg")
    (root / f"{prefix}instances.json").write_text(json.dumps(instances or nwpu_instances()), encoding="utf-8")
    (root / f"{prefix}refs(unc).p").write_bytes(pickle.dumps(refs or nwpu_refs(), protocol=2))
    return root


WRITERS = {"RRSIS-D": write_scenes, "RefSegRS": write_refsegrs, "RISBench": write_risbench, "NWPU-Refer": write_nwpu}
