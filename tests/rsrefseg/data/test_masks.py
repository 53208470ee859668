"""All forms of masks, valid and broken."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rsrefseg.data.formats import open_dataset
from rsrefseg.data.masks import MAX_MASK_PIXELS, BrokenMask, annotated_mask, checked_rle, decode_rle, encode_mask
from rsrefseg.data.samples import Sample
from tests.support.made_data import HEIGHT, WIDTH, change_instances, refusal, write_scenes
from tests.support.made_formats import mask_of, write_refsegrs


@pytest.mark.parametrize("form", ["dict", "list", "runs"])
def test_masks_come_as_a_dict_a_list_of_one_or_plain_runs(tmp_path: Path, form: str) -> None:
    expected = [written.mask for written in write_scenes(tmp_path / "scenes")]

    def rewrite(content: dict[str, Any]) -> None:
        for annotation, mask in zip(content["annotations"], expected, strict=True):
            rle = annotation["segmentation"][0]
            if form == "runs":
                edges = np.flatnonzero(np.diff(mask.ravel(order="F"), prepend=False, append=~mask[-1, -1]))
                rle = {"size": rle["size"], "counts": np.diff(edges, prepend=0).tolist()}
            annotation["segmentation"] = [rle] if form == "list" else rle

    change_instances(tmp_path / "scenes", rewrite)
    for sample, mask in zip(open_dataset(tmp_path / "scenes").samples, expected, strict=True):
        np.testing.assert_array_equal(sample.mask(), mask)
        assert sample.rle == encode_mask(mask)


@pytest.mark.parametrize("density", [0.0, 0.02, 0.5, 1.0])
def test_run_lengths_of_any_mask_are_accepted(density: float) -> None:
    mask = np.random.default_rng(3).random((HEIGHT, 300)) < density
    rle = encode_mask(mask)
    for counts in (rle["counts"], rle["counts"].encode()):
        assert checked_rle({"size": rle["size"], "counts": counts}, "a mask") == rle
    np.testing.assert_array_equal(decode_rle(rle), mask)


@pytest.mark.parametrize(
    ("rle", "expected"),
    [
        ({"size": [10, 10], "counts": "52"}, "7 pixels where the size says 100"),
        ({"size": [10, 10], "counts": ""}, "0 pixels"),
        ({"size": [10, 10], "counts": b"\xff\xff"}, "unknown character"),
        ({"size": [10, 10], "counts": "5o"}, "cut off"),
        ({"size": [10, 10], "counts": "O"}, "negative run"),
        ({"size": [10, 10], "counts": "o" * 40 + "0"}, "too many characters"),
        ({"size": [10, 10], "counts": [5, -3, 98]}, "broken"),
        ({"size": [10, 10], "counts": [1, 2]}, "3 pixels"),
        ({"size": [10, 10], "counts": None}, "broken"),
        ({"size": [10, 10]}, "not a run-length mask"),
        ({"size": [10, 0], "counts": "0"}, "not a height and width"),
        ({"size": ["10", 10], "counts": "0"}, "not a height and width"),
        ({"size": [MAX_MASK_PIXELS, 2], "counts": "0"}, "beyond the limit"),
    ],
)
def test_broken_run_lengths_are_named(rle: dict[str, Any], expected: str) -> None:
    mask = annotated_mask([rle], "annotation 7")
    assert isinstance(mask, BrokenMask)
    line = refusal(Sample("s7", "train", Path("a.jpg"), "the ship", "ship", mask).mask)
    for part in (expected, "'s7'", "annotation 7"):
        assert part in line


@pytest.mark.parametrize(
    ("polygon", "expected"),
    [
        ([1, 2, 3, 4], "three points"),  # pycocotools would take it for a box
        ([1, 2, 3, 4, 5, 6, 7], "three points"),
        ([1, 2, 3, 4, 5, "six"], "numbers only"),
        ([1, 2, 3, 4, 5, [6, 7]], "numbers only"),
        ([[1, 2], [3, 4], [5, 6]], "three points"),
        ([1, 2, 3, 4, 5, float("nan")], "far outside"),
        ([1, 2, 3, 4, 5, 1e9], "far outside"),
        ([0, 0, 30, 20] * 200_000, "too long"),
    ],
)
def test_broken_polygons_are_named(polygon: list[Any], expected: str) -> None:
    mask = annotated_mask([[polygon]], "annotation 7", (24, 32))
    assert isinstance(mask, BrokenMask)
    assert expected in mask.reason


def grey(mask: np.ndarray) -> Image.Image:
    return Image.fromarray(mask.astype(np.uint8) * 255)


def palette(mask: np.ndarray) -> Image.Image:
    indexed = Image.frombytes("P", mask.shape[::-1], mask.astype(np.uint8).tobytes())
    indexed.putpalette([0, 0, 0, 128, 0, 0])
    return indexed


MASK_FILES: dict[str, tuple[str, Callable[[np.ndarray], Image.Image]]] = {
    "three channels": (".tif", lambda mask: Image.merge("RGB", [grey(mask & False), grey(mask), grey(mask & False)])),
    "one bit": (".tif", lambda mask: grey(mask).convert("1")),
    "ones": (".tif", lambda mask: Image.fromarray(mask.astype(np.uint8))),
    "alpha": (".png", lambda mask: grey(mask).convert("RGBA")),
    "palette": (".tif", palette),
    "16 bits": (".tif", lambda mask: Image.fromarray(mask.astype(np.uint16) * 65535)),
}


@pytest.mark.parametrize("form", MASK_FILES)
def test_every_pixel_of_a_mask_file_that_is_not_black_is_foreground(tmp_path: Path, form: str) -> None:
    root, mask = write_refsegrs(tmp_path / "set"), mask_of(7)
    (root / "masks" / "7.tif").unlink()
    suffix, draw = MASK_FILES[form]
    draw(mask).save(root / "masks" / f"7{suffix}")
    np.testing.assert_array_equal(open_dataset(root).samples[0].mask(), mask)


def test_a_mask_of_another_size_is_refused_or_resized(tmp_path: Path) -> None:
    write_scenes(tmp_path / "scenes")
    sample = open_dataset(tmp_path / "scenes").samples[0]
    line = refusal(lambda: sample.mask_at((2 * HEIGHT, 2 * WIDTH), resize=False))
    for part in ("00001.jpg", f"{HEIGHT}x{WIDTH}", f"{2 * HEIGHT}x{2 * WIDTH}", "--resize-masks"):
        assert part in line
    for factor in (1, 2):
        mask, resized = sample.mask_at((factor * HEIGHT, factor * WIDTH), resize=True)
        assert resized == (factor == 2)
        np.testing.assert_array_equal(mask, sample.mask().repeat(factor, axis=0).repeat(factor, axis=1))
