"""Threshold, presence scores and run lengths: from the logits to every file that is written."""

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image
from pycocotools import mask as coco

from rsrefseg.engines.errors import BadInputError
from rsrefseg.engines.images.scene import RasterInfo, Scene
from rsrefseg.engines.presence import Presence
from rsrefseg.engines.results.results import write_results
from rsrefseg.engines.results.run_lengths import encode_rle
from rsrefseg.engines.segmentation import MaskRule, Segmentation

PRESENCE = Presence(scale=2.0, bias=-4.0, auc=0.9, with_target=1, without_target=1, checkpoint_sha256="0" * 64)
RAMP = np.linspace(-4, 4, 64, dtype=np.float32).reshape(8, 8)
PHOTO = Scene(np.zeros((8, 8, 3), np.uint8))


def judged(rule: MaskRule, logits: np.ndarray = RAMP, phrase: str = "the ship") -> Segmentation:
    return Segmentation(phrase, logits, (8, 8), 8, (), None, *rule.judge(logits, (8, 8), False))


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.9])
def test_the_mask_is_where_the_probability_is_above_the_threshold(threshold: float) -> None:
    found = judged(MaskRule(threshold))
    assert np.array_equal(found.mask, found.probability > threshold)
    assert 0 < found.mask.sum() < found.mask.size


def test_a_phrase_below_the_limit_of_presence_has_an_empty_mask() -> None:
    strong, weak = judged(MaskRule(0.5, 0.5, PRESENCE)), judged(MaskRule(0.5, 0.5, PRESENCE), RAMP - 3)
    assert strong.presence is not None
    assert weak.presence is not None
    assert (strong.presence, weak.presence) == (pytest.approx(1 / (1 + np.exp(-4))), pytest.approx(1 / (1 + np.exp(2))))
    assert strong.mask.any()
    assert not weak.mask.any()
    assert judged(MaskRule(0.5, 0.0, PRESENCE), RAMP - 3).mask.any(), "without a limit, the score is only reported"
    assert MaskRule().judge(RAMP, (8, 8), False)[0] is None


def test_of_tiles_the_most_certain_one_decides() -> None:
    tiles = np.stack([RAMP - 9, RAMP, RAMP - 5]).astype(np.float16)
    assert PRESENCE.score(tiles, (8, 8), False) == PRESENCE.score(RAMP, (8, 8), False)


def test_logits_of_the_padding_do_not_count() -> None:
    padded = RAMP.copy()
    padded[4:] = 30  # below an image that is twice as wide as high
    found = PRESENCE.score(np.stack([padded, padded - 1]), (30, 60), True)
    assert found == pytest.approx(1 / (1 + np.exp(4 - 2 * RAMP[:4].max())))
    assert found < PRESENCE.score(padded, (30, 60), False)
    assert MaskRule(0.5, 0.5, PRESENCE).judge(padded, (30, 60), True) == (
        PRESENCE.score(padded, (30, 60), True),
        np.inf,
    )


@pytest.mark.parametrize("arguments", [(0.0,), (1.0,), (0.5, -0.1), (0.5, 1.1), (0.5, 0.5)])
def test_limits_out_of_range_or_without_scores_are_refused(arguments: tuple[float, ...]) -> None:
    with pytest.raises(BadInputError):
        MaskRule(*arguments)


def test_all_files_of_a_photo_follow_threshold_and_presence(tmp_path: Path) -> None:
    both = [judged(MaskRule(0.9, 0.5, PRESENCE)), judged(MaskRule(0.9, 0.5, PRESENCE), RAMP - 3, "the dam")]
    files = write_results(tmp_path, "scene", PHOTO, both, rle=True)
    masks = [np.asarray(Image.open(file)) > 0 for file in files[:2]]
    results = json.loads(files[-1].read_bytes())["results"]
    for mask, one, result in zip(masks, both, results, strict=True):
        assert np.array_equal(mask, one.mask)
        assert result["area_px"] == mask.sum() == sum(polygon["area_px"] for polygon in result["polygons"])
        assert np.array_equal(coco.decode(result["rle"]).astype(bool), mask)
    assert [result["presence"] for result in results] == [round(one.presence or 0, 6) for one in both]
    assert results[1]["box"] is None


def test_the_map_of_a_raster_follows_threshold_and_presence(tmp_path: Path) -> None:
    raster = RasterInfo("EPSG:32633", (1.0, 0.0, 500000.0, 0.0, -1.0, 5000000.0), (1, 2, 3), ("", "", ""), "none")
    both = [judged(MaskRule(0.9, 0.5, PRESENCE)), judged(MaskRule(0.9, 0.5, PRESENCE), RAMP - 3, "the dam")]
    masks, regions, *_ = write_results(tmp_path, "scene", Scene(PHOTO.image, raster=raster), both)
    with rasterio.open(masks) as file:
        assert np.array_equal(file.read(1) > 0, both[0].mask)
        assert not file.read(2).any()
    features = json.loads(regions.read_bytes())["features"]
    assert {feature["properties"]["phrase"] for feature in features} == {"the ship"}


def test_objects_have_their_own_box_area_and_score(tmp_path: Path) -> None:
    logits = np.full((8, 8), -5, np.float32)
    logits[1:3, 1:4], logits[5:7, 6:8] = 1, 4
    files = write_results(tmp_path, "scene", PHOTO, [judged(MaskRule(), logits)])
    found = sorted(json.loads(files[-1].read_bytes())["results"][0]["polygons"], key=lambda one: one["box"])
    assert [one["box"] for one in found] == [[1, 1, 4, 3], [6, 5, 8, 7]]
    assert [one["area_px"] for one in found] == [6, 4]
    assert [one["score"] for one in found] == [pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-4) for logit in (1, 4)]


def test_run_lengths_are_cocos() -> None:
    random = np.random.default_rng(0)
    for share in (0, 0.01, 0.5, 0.99, 1):
        for shape in ((1, 1), (3, 5), (40, 1), (1, 40), (90, 300)):
            mask = random.random(shape) < share
            wanted = coco.encode(np.asfortranarray(mask, np.uint8))
            assert encode_rle(mask) == {"size": list(shape), "counts": wanted["counts"].decode()}
