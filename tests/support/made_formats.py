"""Tiny data sets in every layout; those with mask files or polygons have three images of 24x32."""

import json
import pickle
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rsrefseg.data.masks import encode_mask
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


def write_remotesam(root: Path, refs: str = "refs(unc)_RemoteSAM.p") -> Path:
    """Write RemoteSAM-270K: made scenes in its places; the annotations name one image .png that is a .jpg."""
    write_scenes(root)
    (root / "rrsisd" / "refs(unc).p").rename(root / refs)
    content = json.loads((root / "rrsisd" / "instances.json").read_text())
    content["images"][1]["file_name"] = "00002.png"
    (root / "instances.json").write_text(json.dumps(content))
    (root / "images" / "rrsisd" / "JPEGImages").rename(root / "JPEGImages")
    shutil.rmtree(root / "rrsisd")
    shutil.rmtree(root / "images")
    return root


def write_refdior(root: Path) -> Path:
    write_lists(root, "images", "masks", ".png")
    for image in (root / "images").iterdir():
        Image.open(image).save(image.with_suffix(".jpg"))
        image.unlink()
    (root / "phrase_txts").mkdir()
    for split in ("train", "val", "test"):
        (root / f"output_phrase_{split}.txt").unlink()
        entries: dict[str, Any] = {}
        for of, name, phrase in LINES:
            if of == split:
                entries.setdefault(name, {"bbox": [2, 7, 20, 13], "sentences": []})["sentences"].append(phrase)
        (root / "phrase_txts" / f"{split}.json").write_text(json.dumps(entries))
    return root


AERIAL_D = """<annotation>
  <filename>{name}.png</filename>
  <size><width>{width}</width><height>{height}</height></size>
  <object>
    <name>ship</name><id>40081</id><segmentation>{first}</segmentation>
    <expressions>
      <expression id="0">the ship in the top left</expression>
      <expression type="enhanced" base_id="0">the vessel, at the quay</expression>
    </expressions>
  </object>
  <object><name>ship</name><id>40082</id><segmentation>{second}</segmentation></object>
  <groups>
    <group>
      <id>1000000</id><category>ship</category><segmentation>{both}</segmentation>
      <expressions><expression type="unique">all ships</expression></expressions>
    </group>
  </groups>
</annotation>
"""


def write_aerial_d(root: Path, splits: tuple[str, ...] = ("train", "val", "test")) -> Path:
    for number, split in enumerate(splits):
        name = f"P0707_patch_{number:06d}"
        for folder in ("annotations", "images"):
            (root / split / folder).mkdir(parents=True)
        picture(number).save(root / split / "images" / f"{name}.png")
        masks = mask_of(1), mask_of(10), mask_of(1) | mask_of(10)
        texts = (str(encode_mask(mask)).replace("&", "&amp;").replace("<", "&lt;") for mask in masks)
        parts = dict(zip(("first", "second", "both"), texts, strict=True))
        text = AERIAL_D.format(name=name, width=WIDTH, height=HEIGHT, **parts)
        (root / split / "annotations" / f"{name}.xml").write_text(text)
    return root


WRITERS = {
    "RRSIS-D": write_scenes,
    "RemoteSAM-270K": write_remotesam,
    "RefSegRS": write_refsegrs,
    "RISBench": write_risbench,
    "NWPU-Refer": write_nwpu,
    "RefDIOR": write_refdior,
    "Aerial-D": write_aerial_d,
}
