"""What is written and drawn says what was found, for every size of image and every kind of phrase."""

import json
import os
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from rsrefseg.engines.images.images import read_image
from rsrefseg.engines.results.figures import describe
from rsrefseg.engines.results.overlay import Overlay, colour_of
from rsrefseg.engines.results.results import write_results
from rsrefseg.engines.segmentation import Segmentation

ODD_PHRASES = ["船 near the 🚢", "السفينة", "a\x00b\ud800\n\u202ec", "étang", "../../etc/passwd", "..."]
ODD_PHRASES += ["word " * 199, "x" * 900]


def found(mask: np.ndarray, phrase: str = "the stadium", warnings: tuple[str, ...] = ()) -> Segmentation:
    """A segmentation with probability 0.9 inside of a mask and 0.1 outside."""
    segmentation = Mock(spec=Segmentation, phrase=phrase, mask=mask, warnings=warnings, presence=None, cut_logit=0.0)
    segmentation.full_size_logits.return_value = np.where(mask, np.log(9), -np.log(9)).astype(np.float32)
    return segmentation


def figures(segmentation: Segmentation) -> dict[str, Any]:
    return describe(segmentation, segmentation.full_size_logits())


def overlay(image: np.ndarray, segmentations: Sequence[Segmentation]) -> np.ndarray:
    drawing = Overlay(image)
    for one in segmentations:
        drawing.add(one.phrase, one.full_size_logits(), figures(one)["mean_probability"])
    return drawing.render()


def disc(height: int = 60, width: int = 80, radius: float = 15, hole: float = 0) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    distance = np.hypot(rows - height * 0.5, columns - width * 0.4)
    return (distance <= radius) & (distance >= hole)


def test_the_figures_of_a_mask() -> None:
    mask = np.zeros((10, 20), np.bool_)
    mask[2:5, 7:9] = True
    document = figures(found(mask, warnings=("cut",)))
    assert document == {
        "phrase": "the stadium", "box": [7, 2, 9, 5], "area_px": 6, "area_share": 0.03, "mean_probability": 0.9,
        "presence": None, "polygons": [
            {"box": [7, 2, 9, 5], "area_px": 6, "score": 0.9, "outer": [[7, 2], [7, 4], [8, 4], [8, 2]], "holes": []}
        ], "warnings": ["cut"],
    }  # fmt: skip
    assert json.loads(json.dumps(document)) == document
    empty = {"box": None, "area_px": 0, "area_share": 0, "mean_probability": None, "polygons": []}
    assert figures(found(np.zeros((3, 4), np.bool_))).items() >= empty.items()


@settings(max_examples=150, deadline=None, derandomize=True)
@given(mask=arrays.arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_filling_polygons_and_their_holes_gives_back_the_mask(mask: np.ndarray) -> None:
    drawn = np.zeros(mask.shape, np.uint8)
    for polygon in figures(found(mask))["polygons"]:
        region = np.zeros(mask.shape, np.uint8)
        cv2.fillPoly(region, [np.array(ring, np.int32) for ring in (polygon["outer"], *polygon["holes"])], 1)
        drawn |= region
    assert np.array_equal(drawn.astype(np.bool_), mask)
    polygons = figures(found(mask))["polygons"]
    assert sum(polygon["area_px"] for polygon in polygons) == mask.sum()
    (ring,) = figures(found(disc(hole=8)))["polygons"]
    assert len(ring["holes"]) == 1


def test_files_for_each_phrase_an_overlay_and_the_figures(tmp_path: Path) -> None:
    image = np.full((60, 80, 3), 120, np.uint8)
    masks = {"The Stadium, left!": disc(), "the field": ~disc(), "a ship": np.zeros((60, 80), np.bool_)}
    answers = [found(mask, phrase) for phrase, mask in masks.items()]
    paths = write_results(str(tmp_path / "new"), "scene", image, answers)
    assert [path.name for path in paths] == [
        "scene_the-stadium-left-3fc1c54b_mask.png", "scene_the-field-0a59e3db_mask.png",
        "scene_a-ship-acdefc95_mask.png",
        "scene_overlay.png", "scene.json",
    ]  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(path.name for path in paths)
    for path, answer in zip(paths, answers, strict=False):
        with Image.open(path) as stored:
            assert (stored.mode, stored.size) == ("L", (80, 60))
            assert np.array_equal(np.asarray(stored), np.where(answer.mask, 255, 0))
    document = json.loads(paths[-1].read_text())
    assert (document["width"], document["height"], document["overlay_file"]) == (80, 60, "scene_overlay.png")
    assert [result["mask_file"] for result in document["results"]] == [path.name for path in paths[:3]]
    assert [result["phrase"] for result in document["results"]] == [answer.phrase for answer in answers]
    assert document["results"][0]["box"] == figures(answers[0])["box"]
    assert read_image(paths[3]).shape[1] == 768


def test_memory_does_not_grow_with_the_number_of_phrases(tmp_path: Path) -> None:
    logits = np.tile(np.linspace(-1, 1, 16, dtype=np.float32), (16, 1))

    def peak_mib(count: int) -> float:
        segmentations = [Segmentation(f"phrase {index}", logits, (1000, 1500), 32) for index in range(count)]
        tracemalloc.start()
        write_results(tmp_path, "a", np.zeros((1000, 1500, 3), np.uint8), segmentations)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak / 2**20

    assert peak_mib(8) < peak_mib(2) + 1  # a mask alone takes 1.4 MiB


def test_urls_that_differ_in_their_query_are_two_images(tmp_path: Path) -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    urls = [f"https://user:p@ss@host/scene?id={number}" for number in (1, 2, 1)]
    first, second, again = (write_results(tmp_path, "scene", image, [found(disc())], url) for url in urls)
    assert first == again
    assert not set(first) & set(second)
    assert json.loads(first[-1].read_bytes())["source"] == "https://host/scene"


def test_results_of_another_image_are_not_overwritten(tmp_path: Path) -> None:
    image, out = np.zeros((60, 80, 3), np.uint8), tmp_path / "out"
    sources = [tmp_path / "a" / "1.png", tmp_path / "b" / "1.png"]
    written = [write_results(out, "1", image, [found(disc())], source) for source in (*sources, *sources)]
    assert not set(written[0]) & set(written[1])
    assert written[:2] == written[2:]
    assert written[0][-1] == out / "1.json"
    for source, files in zip(sources, written, strict=False):
        assert json.loads(files[-1].read_bytes())["source"] == str(source)
    (out / "1.json").write_text("[]")  # a file of somebody else's
    assert write_results(out, "1", image, [found(disc())], sources[0])[-1] != out / "1.json"
    assert (out / "1.json").read_text() == "[]"


def test_odd_and_equal_phrases_have_files_of_their_own(tmp_path: Path) -> None:
    phrases = [*ODD_PHRASES, "the ship", "The Ship!", "the  ship", "phrase"]
    paths = write_results(tmp_path, "a", np.zeros((60, 80, 3), np.uint8), [found(disc(), phrase) for phrase in phrases])
    assert len(set(paths)) == len(phrases) + 2
    assert {path.parent for path in paths} == {tmp_path}
    assert all(path.is_file() and path.name.isascii() and len(path.name) < 90 for path in paths)
    assert [result["phrase"] for result in json.loads(paths[-1].read_text())["results"]] == phrases


@pytest.mark.parametrize("stem", ["../up", "a/b", ".hidden", "", "船" * 200, os.fsdecode(b"caf\xe9")])
def test_an_odd_stem_stays_in_its_folder(tmp_path: Path, stem: str) -> None:
    paths = write_results(tmp_path / "out", stem, np.zeros((60, 80, 3), np.uint8), [found(disc())])
    assert all(path.parent == tmp_path / "out" and path.is_file() for path in paths)
    assert not any(path.name.startswith(".") for path in paths)
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


SHOWN = {
    (60, 80): (576, 768), (256, 256): (768, 768), (900, 1200): (900, 1200), (1000, 8192): (500, 4096),
    (1, 1): (768, 768), (500, 1): (768, 384), (3, 5000): (2, 4096),
}  # fmt: skip


@pytest.mark.parametrize("size", SHOWN)
def test_the_overlay_is_large_enough_to_read_and_small_enough_to_show(size: tuple[int, int]) -> None:
    mask = np.zeros(size, np.bool_)
    mask[: max(1, size[0] // 2)] = True
    drawn, (height, width) = overlay(np.full((*size, 3), 90, np.uint8), [found(mask)]), SHOWN[size]
    assert (drawn.dtype, drawn.shape[1]) == (np.uint8, width)
    assert height + 20 < drawn.shape[0] < height + 60 + width // 10


def test_regions_keep_their_look_and_the_rest_is_dimmed() -> None:
    image = np.random.default_rng(0).integers(100, 200, (768, 768, 3), dtype=np.uint8)
    mask = np.zeros((768, 768), np.bool_)
    mask[200:600, 200:600] = True
    drawn = overlay(image, [found(mask)]).astype(int)
    inside, outside = np.s_[250:550, 250:550], np.s_[650:750, 50:700]
    assert np.abs(drawn[inside] - image[inside]).max() <= 45
    assert (drawn[outside] < image[outside]).all()
    assert (np.abs(drawn[200, 250:550] - colour_of(0)).max(axis=1) < 10).all()  # the outline


def test_an_image_without_regions_is_unchanged_and_so_are_arguments() -> None:
    image = np.random.default_rng(0).integers(0, 256, (800, 800, 3), dtype=np.uint8)
    assert np.array_equal(overlay(image, [found(np.zeros((800, 800), np.bool_))])[:800], image)
    logits = found(disc(800, 800, 200)).full_size_logits()
    image.flags.writeable = logits.flags.writeable = False
    drawing = Overlay(image)
    drawing.add("a", logits, 0.9)
    drawing.render()


def test_phrases_that_share_a_region_all_show() -> None:
    image = np.full((800, 800, 3), 90, np.uint8)
    drawn = overlay(image, [found(disc(800, 800, 200), phrase) for phrase in ("a", "b", "c")])[:800].astype(int)
    for index in range(3):
        assert (np.abs(drawn - colour_of(index)).max(axis=2) < 8).sum() > 500


def test_one_pixel_in_a_large_image_is_shown() -> None:
    mask = np.zeros((5000, 5000), np.bool_)
    mask[4000, 1000] = True
    drawn = overlay(np.full((5000, 5000, 3), 90, np.uint8), [found(mask)])[:4096].astype(int)
    shown = np.argwhere(np.abs(drawn - colour_of(0)).max(axis=2) < 8)
    assert len(shown) > 500
    assert np.abs(shown.mean(axis=0) - (4000 * 4096 / 5000, 1000 * 4096 / 5000)).max() < 3
