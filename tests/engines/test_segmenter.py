"""An image is encoded once, each phrase is answered on its own."""

from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.engines.engine import Tensors
from rsrefseg.engines.errors import BadInputError
from rsrefseg.engines.images.images import upsample_logits
from rsrefseg.engines.onnxruntime.engine import OnnxRuntimeEngine
from rsrefseg.engines.segmentation import Segmentation
from rsrefseg.engines.segmenter import Segmenter
from tests.support.commands import run_alone
from tests.support.made_bundle import COLOURS, PHRASES

RED, GREEN, BLUE = (tuple(255 * part for part in colour) for colour in COLOURS.values())


class CountingEngine(OnnxRuntimeEngine):
    """The real engine, counting its runs."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle, threads=1)
        self.runs: Counter[str] = Counter()
        self.phrases: list[int] = []

    def _run(self, stage: Stage, model: Any, feeds: Mapping[str, Any]) -> Tensors:
        self.runs[str(stage)] += 1
        if stage is Stage.SAM_DECODER:
            self.phrases.append(len(feeds["mask_prompt"]))
        return super()._run(stage, model, feeds)


@pytest.fixture
def engine(bundle: Bundle) -> CountingEngine:
    return CountingEngine(bundle)


@pytest.fixture
def segmenter(bundle: Bundle, engine: CountingEngine) -> Segmenter:
    return Segmenter(bundle, engine)


def image(height: int = 40, width: int = 60) -> np.ndarray:
    """Red above left, blue below right, green above right, black below left."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2] = RED
    pixels[height // 2 :, width // 2 :] = BLUE
    pixels[: height // 2, width // 2 :] = GREEN
    return pixels


def test_each_phrase_finds_its_region(segmenter: Segmenter) -> None:
    quarters = {"red": np.s_[:20, :30], "green": np.s_[:20, 30:], "blue": np.s_[20:, 30:]}
    found = segmenter.segment(image(), [f"the {colour}" for colour in quarters])
    for one, (colour, quarter) in zip(found, quarters.items(), strict=True):
        assert one.phrase == f"the {colour}"
        assert (one.mask_logits.shape, one.mask_logits.dtype) == ((16, 16), np.float32)
        assert (one.probability.shape, one.probability.dtype) == ((40, 60), np.float32)
        assert (one.mask.shape, one.mask.dtype) == ((40, 60), np.bool_)
        truth = np.zeros((40, 60), np.bool_)
        truth[quarter] = True
        assert np.count_nonzero(one.mask & truth) / np.count_nonzero(one.mask | truth) > 0.8


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (333, 7), (32, 32), (500, 400)])
def test_probability_and_mask_have_the_size_of_the_image_and_follow_from_the_logits(
    segmenter: Segmenter, size: tuple[int, int]
) -> None:
    (found,) = segmenter.segment(image(*size), ["the red square"])
    logits = upsample_logits(found.mask_logits, 32, size).astype(np.float64)
    assert logits.shape == size
    assert np.abs(found.probability - 1 / (1 + np.exp(-logits))).max() < 1e-6
    assert np.array_equal(found.mask, logits > 0)


def test_extreme_logits_give_0_and_1_without_a_warning() -> None:
    extreme = np.full((16, 16), -1e4, np.float32)
    extreme[:, :8] = 1e4
    with np.errstate(all="raise"):
        probability = Segmentation("the red", extreme, (16, 16), 32).probability
    assert set(np.unique(probability)) == {0, 1}


def test_an_encoded_image_serves_many_phrases_and_a_known_phrase_is_not_encoded_again(
    segmenter: Segmenter, engine: CountingEngine
) -> None:
    encoded = segmenter.encode_image(image())
    red, blue, again = segmenter.segment(encoded, ["the red square", "the blue square", "the red square"])
    cached = segmenter.segment(encoded, ["the blue square", "the red square"])
    assert engine.runs == dict.fromkeys(Stage, 1) | {Stage.ATTN_PROMPTER: 2, Stage.SAM_DECODER: 2}
    assert np.array_equal(blue.mask_logits, cached[0].mask_logits)
    for other in (again, cached[1], segmenter.segment(image(), ["the red square"])[0]):
        assert np.array_equal(red.mask_logits, other.mask_logits)


@pytest.mark.parametrize(("cached", "encodings"), [(2, [1, 2, 2, 3, 3, 4]), (0, [1, 2, 3, 4, 5, 6])])
def test_the_phrase_used_longest_ago_is_forgotten(
    bundle: Bundle, engine: CountingEngine, cached: int, encodings: list[int]
) -> None:
    with pytest.raises(BadInputError, match="cached_phrases"):
        Segmenter(bundle, engine, cached_phrases=-1)
    segmenter = Segmenter(bundle, engine, cached_phrases=cached)
    encoded = segmenter.encode_image(image())
    phrases = ["the red", "the blue", "the red", "a green", "the red", "the blue"]
    for phrase, count in zip(phrases, encodings, strict=True):
        segmenter.segment(encoded, [phrase])
        assert engine.runs["siglip_text"] == count, phrase


def test_a_mask_does_not_depend_on_the_other_phrases(segmenter: Segmenter, bundle: Bundle) -> None:
    together = segmenter.segment(image(), PHRASES)
    for phrase, found in zip(PHRASES, together, strict=True):
        (alone,) = Segmenter(bundle, OnnxRuntimeEngine(bundle)).segment(image(), [phrase])
        assert np.array_equal(alone.mask, found.mask)
        assert np.abs(alone.mask_logits - found.mask_logits).max() < 1e-5  # matrix products of other sizes


def test_more_phrases_than_a_graph_takes_are_run_in_parts(segmenter: Segmenter, engine: CountingEngine) -> None:
    phrases = [f"the {'red' if number % 2 else 'blue'} square {number}" for number in range(70)]
    found = segmenter.segment(image(), phrases)
    assert engine.phrases == [32, 32, 6]
    assert [one.phrase for one in found] == phrases
    assert all(one.mask[5, 5] == bool(number % 2) for number, one in enumerate(found))


def test_warnings_belong_to_their_phrase(segmenter: Segmenter) -> None:
    found = segmenter.segment(image(), ["the red square", "the red zeppelin"])
    assert found[0].warnings == ()
    assert "'zeppelin'" in found[1].warnings[0]


@pytest.mark.parametrize("phrases", [[], "the red", [""], ["the red", "🚢"], ["red " * 1300]])
def test_bad_phrases_and_images_are_refused_before_anything_is_loaded(segmenter: Segmenter, phrases: Any) -> None:
    with pytest.raises(BadInputError, match="phrase"):
        segmenter.segment(image(), phrases)
    with pytest.raises(BadInputError, match="float32"):
        segmenter.segment(image().astype(np.float32), ["the red"])
    assert segmenter.engine.load_ms == {}


def test_threads_can_share_a_segmenter(segmenter: Segmenter) -> None:
    expected = [segmenter.segment(image(), [phrase])[0].mask for phrase in PHRASES]
    with ThreadPoolExecutor(6) as pool:
        for found in pool.map(lambda _: segmenter.segment(image(), PHRASES), range(6)):
            assert np.array_equal([one.mask for one in found], expected)


COLD_START = """
import sys, time
from pathlib import Path
import rsrefseg
assert "numpy" not in sys.modules
with rsrefseg.Segmenter.open(sys.argv[1]) as segmenter:
    image = rsrefseg.read_image(sys.argv[2])
    rsrefseg.write_results(Path(sys.argv[2]).parent, "a", image, segmenter.segment(image, ["the red"]))
assert not [name for name in ("torch", "torchvision", "transformers", "onnx", "rasterio") if name in sys.modules]
assert time.process_time() < 2
"""


def test_a_cold_start_needs_no_torch_and_is_quick(folder: Path, tmp_path: Path) -> None:
    Image.fromarray(image()).save(tmp_path / "a.png")
    done = run_alone(folder, tmp_path / "a.png", script=COLD_START)
    assert (done.returncode, done.stderr) == (0, "")
