"""Large scenes are segmented in overlapping tiles whose logits are blended into one mask."""

import json
import signal
import subprocess
import sys
import tracemalloc
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.errors import BadInputError
from rsrefseg.engines.images.images import open_scene
from rsrefseg.engines.images.scene import Scene
from rsrefseg.engines.images.tiles import Tiling
from rsrefseg.engines.infer import InferReport, infer_image
from rsrefseg.engines.onnxruntime.engine import OnnxRuntimeEngine
from rsrefseg.engines.presence import Presence
from rsrefseg.engines.results.overlay import Reduced
from rsrefseg.engines.segmentation import MaskRule
from rsrefseg.engines.segmenter import Segmenter
from rsrefseg.engines.tiling import segment_tiles
from tests.support.rasters import write_raster

PHRASES = ("the red square", "a blue square")


@settings(max_examples=150, deadline=None, derandomize=True)
@given(length=st.integers(1, 90), tile=st.integers(1, 40), share=st.floats(0, 0.5))
def test_tiles_cover_a_scene_and_their_weights_sum_to_one(length: int, tile: int, share: float) -> None:
    tiling = Tiling(length, 7, tile, int(tile * share))
    spans, total = tiling.rows, np.zeros(length)
    assert (spans[0][0], spans[-1][1]) == (0, length)
    assert {end - start for start, end in spans} == {min(tile, length)}
    assert all(one[1] - other[0] >= tiling.overlap_px for one, other in pairwise(spans))
    for (start, end), weights in zip(spans, tiling.weights(spans), strict=True):
        assert (weights > 0).all()
        total[start:end] += weights
    assert np.allclose(total, 1, atol=1e-5)


def test_auto_makes_tiles_where_a_network_pixel_would_cover_too_much() -> None:
    assert Tiling.choose("auto", None, (96, 96), 32) == (None, "")
    tiling, note = Tiling.choose("auto", None, (40, 100), 32)
    assert tiling == Tiling(40, 100, 32, 8)
    assert "8 tiles of 32 px" in note
    assert Tiling.choose("50", 10, (40, 100), 32)[0] == Tiling(40, 100, 50, 10)
    whole, warning = Tiling.choose("off", None, (40, 100), 32)
    assert whole is None
    assert "--tile" in warning
    for tile, overlap in (("much", None), ("0", None), ("-5", None), ("50", 26), ("²", None)):
        with pytest.raises(BadInputError, match="tile"):
            Tiling.choose(tile, overlap, (40, 100), 32)


def test_an_overlap_that_is_raised_by_one_tile_only_is_smooth() -> None:
    tiling = Tiling(20, 20, 12, 4)
    first, second = tiling.weights(tiling.rows)
    assert (np.diff(second[:4]) > 0).all()
    assert np.allclose(first[8:] + second[:4], 1)


def squares(repeat: int = 1, side: int = 64) -> np.ndarray:
    """A red and a blue square (3, side, side) on black, repeated."""
    bands = np.zeros((3, side, side), np.uint8)
    bands[0, 8:24, 8:24] = 255
    bands[2, 40:56, 24:40] = 255
    return np.tile(bands, (1, repeat, repeat))


def infer(folder: Path, path: Path, out: Path, **options: Any) -> InferReport:
    return infer_image(str(path), PHRASES, folder, "onnxruntime", out, **options)


def read_masks(report: InferReport) -> np.ndarray:
    with rasterio.open(report.files[0]) as masks:
        return np.asarray(masks.read())


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return np.count_nonzero(one & other) / np.count_nonzero(one | other)


def test_tiles_without_overlap_repeat_the_answer_of_one(folder: Path, tmp_path: Path) -> None:
    one = write_raster(tmp_path / "one.tif", squares(), photometric="RGB")
    many = write_raster(tmp_path / "many.tif", squares(6), photometric="RGB")
    single = read_masks(infer(folder, one.path, tmp_path / "out", tile="64", overlap=0))
    report = infer(folder, many.path, tmp_path / "out", tile="64", overlap=0)
    masks = read_masks(report)
    assert single.any(axis=(1, 2)).all()
    assert np.array_equal(masks, np.tile(single, (1, 6, 6)))
    assert (report.provenance.tile_px, report.provenance.overlap_px) == (64, 0)
    features = json.loads(report.files[1].read_text())["features"]
    assert len(features) == 2 * 36
    for result, phrase in zip(report.results, PHRASES, strict=True):
        areas = [one["properties"]["area_px"] for one in features if one["properties"]["phrase"] == phrase]
        assert result["area_px"] == sum(areas) == np.count_nonzero(masks[PHRASES.index(phrase)])


@pytest.mark.parametrize("overlap", [16, 32])
@pytest.mark.parametrize(
    "place", [32, 48]
)  # multiples of 16 px, a cell of the hand-made graphs: what they see is equal
def test_an_object_at_a_tile_edge_comes_out_whole(folder: Path, tmp_path: Path, place: int, overlap: int) -> None:
    scene = np.zeros((3, 160, 160), np.uint8)
    scene[0, place : place + 32, place : place + 32] = 255
    around = slice(place - 16, place + 48)
    tiles = write_raster(tmp_path / "tiles.tif", scene, photometric="RGB").path
    alone = write_raster(tmp_path / "alone.tif", scene[:, around, around], photometric="RGB").path
    blended = read_masks(infer(folder, tiles, tmp_path / "out", tile="64", overlap=overlap))[0] == 1
    single = read_masks(infer(folder, alone, tmp_path / "out", tile="off"))[0] == 1
    assert blended.sum() == blended[around, around].sum()
    assert iou(blended[around, around], single) >= 0.9


def test_auto_tiles_a_large_scene_and_says_so(folder: Path, tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", squares(4), photometric="RGB").path
    report = infer(folder, path, tmp_path / "out")
    assert report.provenance.tile_px == 32
    assert any("tiles" in note for note in report.notes)
    whole = infer(folder, path, tmp_path / "out", tile="off")
    assert whole.provenance.tile_px is None
    assert any("--tile" in note for note in whole.notes)


def test_strips_are_the_full_logits_and_keep_pixels_without_data_out(bundle: Bundle, tmp_path: Path) -> None:
    bands = np.maximum(squares(3), 1)
    bands[:, 70:90, 100:] = 0
    stored = write_raster(tmp_path / "a.tif", bands, nodata=0, photometric="RGB")
    segmenter = Segmenter(bundle, OnnxRuntimeEngine(bundle))
    with open_scene(stored.path, 10**6) as source:
        found = segment_tiles(segmenter, source, PHRASES, Tiling(192, 192, 50, 9))
    for one in found:
        full = one.full_size_logits()
        assert np.array_equal(np.concatenate([strip for _, strip in one.strips()]), full)
        assert not (one.mask & ~stored.valid).any()
        assert one.mask.any()


def test_one_tile_is_the_whole_scene(bundle: Bundle) -> None:
    segmenter, scene = Segmenter(bundle, OnnxRuntimeEngine(bundle)), Scene(np.moveaxis(squares(), 0, 2).copy())
    (tiled,) = segment_tiles(segmenter, scene, PHRASES[:1], Tiling(64, 64, 64, 0))
    (whole,) = segmenter.segment(scene, PHRASES[:1])
    assert np.abs(tiled.full_size_logits() - whole.full_size_logits()).max() < 0.01  # kept as float16


def test_tiles_without_data_do_not_count_for_presence(bundle: Bundle) -> None:
    pixels = np.moveaxis(squares(2), 0, 2).copy()
    valid = np.ones(pixels.shape[:2], np.bool_)
    valid[:64, :64] = False
    segmenter = Segmenter(bundle, OnnxRuntimeEngine(bundle))
    presence = Presence(scale=1, bias=0, auc=1, with_target=1, without_target=1, checkpoint_sha256="0" * 64)
    segmenter.rule = MaskRule(presence=presence)
    (tiled,) = segment_tiles(segmenter, Scene(pixels, valid), PHRASES[:1], Tiling(128, 128, 64, 0))
    assert tiled.presence == pytest.approx(presence.score(tiled.mask_logits[1:], (64, 64), False))
    assert tiled.mask_logits[0].max() < -20


def test_photos_are_tiled_as_well(folder: Path, tmp_path: Path) -> None:
    Image.fromarray(np.moveaxis(squares(4), 0, 2)).save(tmp_path / "a.png")
    report = infer(folder, tmp_path / "a.png", tmp_path / "out")
    mask = np.asarray(Image.open(report.files[0])) > 0
    assert mask.shape == (256, 256)
    assert mask.sum() == report.results[0]["area_px"]
    assert len(report.results[0]["polygons"]) == 16


def test_the_reduced_logits_keep_the_highest_of_each_block() -> None:
    logits = np.random.default_rng(0).normal(size=(9000, 40)).astype(np.float32)
    reduced = Reduced((9000, 40))
    for top in range(0, 9000, 700):
        reduced.add(top, logits[top : top + 700])
    expected = np.stack([logits[row : row + 3].max(axis=0) for row in range(0, 9000, 3)])
    assert np.array_equal(reduced.logits[:, 0], expected[:, :3].max(axis=1))


def test_memory_does_not_grow_with_the_height_of_a_scene(folder: Path, tmp_path: Path) -> None:
    def peak_mib(repeat: int) -> float:
        path = write_raster(tmp_path / f"{repeat}.tif", np.tile(squares(), (1, repeat, 4)), photometric="RGB").path
        tracemalloc.start()
        infer(folder, path, tmp_path / "out", tile="64", overlap=0)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak / 2**20

    small = peak_mib(4)
    assert peak_mib(24) < small + 8  # one float32 copy of the larger scene, three bands, takes 4.5 MiB


_KILLED = """
import os, signal, sys
from pathlib import Path
from rsrefseg.engines.infer import infer_image
from rsrefseg.engines.segmenter import Segmenter

segment, calls = Segmenter.segment, []

def killed(*arguments):
    calls.append(arguments)
    if len(calls) == 11:
        os.kill(os.getpid(), signal.SIGKILL)
    return segment(*arguments)

Segmenter.segment = killed
path, folder, out, *phrases = sys.argv[1:]
infer_image(path, phrases, Path(folder), "onnxruntime", Path(out), tile="64", overlap=16)
"""


def test_a_killed_run_continues_after_its_finished_tiles(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bands = np.maximum(squares(4), 1)
    bands[:, :, 230:] = bands[:, 20:60, 20:60] = 0
    path, out = write_raster(tmp_path / "a.tif", bands, nodata=0, photometric="RGB").path, tmp_path / "out"
    whole = infer(folder, path, tmp_path / "whole", tile="64", overlap=16)
    tiles, row = 25, 5
    calls = []
    segment = Segmenter.segment

    def counted(*arguments: Any) -> Any:
        calls.append(arguments)
        return segment(*arguments)

    monkeypatch.setattr(Segmenter, "segment", counted)

    def kill() -> None:
        ran = subprocess.run([sys.executable, "-c", _KILLED, path, folder, out, *PHRASES], check=False)
        assert ran.returncode == -signal.SIGKILL
        assert [entry.name.startswith(".tiles-") for entry in out.iterdir() if not entry.name.startswith("a")] == [True]
        calls.clear()

    for options, expected in (
        ({"resume": True}, tiles - 2 * row),
        ({}, tiles),
        ({"resume": True, "overlap": 8}, tiles),
    ):
        kill()
        resumed = infer(folder, path, out, **{"tile": "64", "overlap": 16, **options})
        assert len(calls) == expected
        if "overlap" not in options:
            assert resumed.files[0].read_bytes() == whole.files[0].read_bytes()
            assert resumed.results == whole.results
        assert not list(out.glob(".*"))


def test_a_run_that_fails_before_its_first_tile_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", squares(4), photometric="RGB").path
    with pytest.raises(BadInputError):
        infer_image(str(path), [" "], folder, "onnxruntime", tmp_path / "out")
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize("tile", ["64", "off"])
@pytest.mark.parametrize(("suffix", "option"), [("png", {"probability": "uint8"}), ("tif", {"min_area": "5m2"})])
def test_maps_that_do_not_suit_the_image_are_refused_before_it_is_segmented(
    folder: Path, tmp_path: Path, suffix: str, option: dict[str, str], tile: str
) -> None:
    path, out = tmp_path / f"a.{suffix}", tmp_path / "out"
    Image.fromarray(np.moveaxis(squares(4), 0, 2)).save(path)  # neither has a place on earth
    before = infer_image(str(path), PHRASES[:1], folder, "onnxruntime", out, tile=tile).files
    contents = [file.read_bytes() for file in before]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OnnxRuntimeEngine, "encode_image", None)
        with pytest.raises(BadInputError):
            infer_image(str(path), PHRASES[:1], folder, "onnxruntime", out, tile=tile, **option)
    assert [file.read_bytes() for file in before] == contents
    assert not list(out.glob(".*"))


def test_strips_of_a_wide_scene_stay_small(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row of tiles as high as the scene."""
    monkeypatch.setattr("rsrefseg.engines.segmentation._STRIP_PIXELS", 2000)
    segmenter, scene = Segmenter(bundle, OnnxRuntimeEngine(bundle)), Scene(np.moveaxis(squares(2), 0, 2).copy())
    (found,) = segment_tiles(segmenter, scene, PHRASES[:1], Tiling(128, 128, 128, 0))
    strips = list(found.strips())
    assert {strip.size for _, strip in strips} <= {15 * 128, 8 * 128}
    (whole,) = segmenter.segment(scene, PHRASES[:1])
    assert np.abs(np.concatenate([strip for _, strip in strips]) - whole.full_size_logits()).max() < 0.01
