"""Made scenes: the same bytes from the same seed, phrases that mean exactly one object, two domains that differ."""

import hashlib
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from rsrefseg.data.formats import open_dataset
from rsrefseg.engines.errors import BadInputError
from rsrefseg.synth import Domain, Referral, Scene, render_scene, synthesize
from rsrefseg.synth.canvas import Brush, Canvas, Pose
from rsrefseg.synth.catalog import CATEGORIES
from rsrefseg.synth.domain import LOOKS
from rsrefseg.synth.expressions import Expression
from rsrefseg.synth.scene import Rendering, render
from rsrefseg.synth.solver import Item, Query, Relation, solve
from tests.support import ROOT

SEEDS = range(60)


@pytest.fixture(scope="module")
def renderings() -> list[Rendering]:
    return [render(seed, domain) for domain in Domain for seed in SEEDS]


def digest(scene: Scene) -> str:
    content = hashlib.sha256(scene.image.tobytes())
    for referral in scene.referrals:
        content.update(referral.phrase.encode() + referral.category.encode() + referral.mask.tobytes())
    return content.hexdigest()


def item(category: str = "ship", color: str | None = None, area: float = 0.02, x: float = 0.5, y: float = 0.5) -> Item:
    return Item(category, color, area, x, y, np.array([[x, y]]))


@pytest.mark.parametrize("domain", Domain)
def test_same_seed_same_bytes_in_another_process(domain: Domain) -> None:
    code = (
        "import sys; from tests.rsrefseg.synth.test_scenes import *; "
        f"print(digest(render_scene(7, Domain('{domain}'))), digest(render_scene(8, Domain('{domain}'), 320, 3)))"
    )
    root = ROOT
    other = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    here = [digest(render_scene(7, domain)), digest(render_scene(8, domain, 320, 3))]
    assert other.stdout.split() == here


def test_scenes_cover_the_catalogue(renderings: list[Rendering]) -> None:
    for domain_renderings in (renderings[: len(SEEDS)], renderings[len(SEEDS) :]):
        asked = {referral.category for rendering in domain_renderings for referral in rendering.scene.referrals}
        assert len(asked) >= 15
        assert asked <= set(CATEGORIES)


def test_masks_fit_their_image_are_large_enough_to_see_and_do_not_overlap(renderings: list[Rendering]) -> None:
    areas = []
    for rendering in renderings:
        image = rendering.scene.image
        assert image.shape == (256, 256, 3)
        assert image.dtype == np.uint8
        for referral in rendering.scene.referrals:
            assert referral.mask.shape == (256, 256)
            assert referral.mask.dtype == np.bool_
            areas.append(referral.mask.mean())
        masks = {expression.target: referral.mask for expression, referral in _pairs(rendering)}
        assert np.sum(list(masks.values()), axis=0).max() <= 1, "objects do not share pixels"
    assert min(areas) >= 0.008
    assert max(areas) <= 0.35
    assert np.mean(np.array(areas) >= 0.01) >= 0.98


def test_every_phrase_has_exactly_one_reading(renderings: list[Rendering]) -> None:
    for rendering in renderings:
        for expression, referral in _pairs(rendering):
            assert solve(rendering.items, expression.query) == expression.target, referral.phrase
            assert rendering.items[expression.target].area == pytest.approx(referral.mask.mean())


def test_phrases_are_true_of_what_is_seen(renderings: list[Rendering]) -> None:
    """Not by the solver: plain facts about the objects, for the simple kinds of phrase."""
    checked = dict.fromkeys(("class", "color", "size", "rank", "side"), 0)
    for rendering in renderings:
        for expression, referral in _pairs(rendering):
            query, target = expression.query, rendering.items[expression.target]
            like = [it for it in rendering.items if it.category == referral.category]
            others = [it for it in like if it is not target]
            phrase = referral.phrase.lower()
            if query == Query(referral.category):
                assert not others, phrase
                checked["class"] += 1
            if query == Query(referral.category, color=query.color) and query.color:
                assert f" {target.color} " in phrase
                assert all(it.color != target.color for it in others), phrase
                checked["color"] += 1
            if query == Query(referral.category, size=query.size) and query.size:
                assert others
                large = re.search(r"\b(large|big)", phrase) is not None
                assert all(target.area > 1.3 * it.area if large else it.area > 1.3 * target.area for it in others)
                checked["size"] += 1
            if "leftmost" in phrase:
                assert all(target.x < it.x for it in others), phrase
                checked["rank"] += 1
            if query == Query(referral.category, place="left"):
                assert target.x < 0.5, phrase
                assert all(it.x > 0.5 for it in others), phrase
                checked["side"] += 1
    assert min(checked.values()) >= 3, checked


def test_every_kind_of_phrase_occurs_and_the_vocabulary_is_small(renderings: list[Rendering]) -> None:
    kinds = [expression.kind for rendering in renderings for expression in rendering.expressions]
    shares = {kind: kinds.count(kind) / len(kinds) for kind in set(kinds)}
    assert set(shares) == {"class", "color", "place", "size", "relation", "combination"}
    assert min(shares.values()) >= 0.06
    phrases = [referral.phrase for rendering in renderings for referral in rendering.scene.referrals]
    assert len(set(re.findall(r"[a-z]+", " ".join(phrases).lower()))) <= 150
    assert all(re.fullmatch(r"[A-Z]?[a-z]*( [a-z]+)+", phrase) for phrase in phrases)


def test_the_domains_differ_in_colour_and_contrast() -> None:
    color, spread = {}, {}
    for domain in Domain:
        images = np.stack([render_scene(seed, domain).image for seed in range(16)]).astype(np.float64)
        color[domain] = images.mean(axis=(0, 1, 2))
        spread[domain] = (images.max(axis=3) - images.min(axis=3)).mean()
    warmth = {domain: mean[0] - mean[2] for domain, mean in color.items()}
    # How far apart they are is told by what it costs a model: tests/test_base.py.
    assert warmth[Domain.B] - warmth[Domain.A] > 20
    assert LOOKS[Domain.A] != LOOKS[Domain.B]


@pytest.mark.parametrize("size", [64, 512])
def test_size_changes_the_resolution_not_the_composition(size: int) -> None:
    small, other = render(3, Domain.A), render(3, Domain.A, size)
    assert other.scene.image.shape == (size, size, 3)
    assert [it.category for it in small.items] == [it.category for it in other.items]
    for one, two in zip(small.items, other.items, strict=True):
        assert (one.x, one.y) == pytest.approx((two.x, two.y), abs=0.02)


@pytest.mark.parametrize(
    ("items", "query"),
    [
        ([item(), item()], Query("ship")),
        ([item(color="white"), item(color="gray")], Query("ship", color="white")),
        ([item(area=0.030), item(area=0.025)], Query("ship", size="large")),
        ([item(area=0.030)], Query("ship", size="large")),
        ([item(x=0.30), item(x=0.33)], Query("ship", rank="left")),
        ([item(x=0.2), item(x=0.47)], Query("ship", place="left")),
        # The largest of all is elsewhere, and one ship alone at the top left is no larger one.
        (
            [item(area=0.02, x=0.1, y=0.1), item(area=0.05, x=0.9, y=0.9)],
            Query("ship", size="large", place="upper left"),
        ),
        ([item(), item("dam", x=0.2), item("dam", x=0.9)], Query("ship", relation=Relation("right", "dam"))),
        ([item(x=0.3), item(x=0.7), item("dam")], Query("ship", relation=Relation("nearest", "dam"))),
    ],
)
def test_a_doubtful_query_has_no_answer(items: list[Item], query: Query) -> None:
    assert solve(items, query) is None


@pytest.mark.parametrize(
    ("items", "query", "wanted"),
    [
        ([item("dam"), item()], Query("ship"), 1),
        ([item(color="red"), item(color="blue")], Query("ship", color="blue"), 1),
        ([item(area=0.02), item(area=0.03)], Query("ship", size="large"), 1),
        ([item(area=0.02), item(area=0.03)], Query("ship", size="small"), 0),
        ([item(x=0.8), item(x=0.3)], Query("ship", rank="left"), 1),
        ([item(x=0.6, y=0.9), item(x=0.1, y=0.8)], Query("ship", place="lower left"), 1),
        ([item("dam"), item(x=0.8)], Query("ship", relation=Relation("right", "dam")), 1),
        ([item(x=0.1), item(x=0.6), item("dam")], Query("ship", relation=Relation("nearest", "dam")), 1),
        ([item(x=0.1), item(x=0.6), item("dam")], Query("ship", relation=Relation("farthest", "dam")), 0),
    ],
)
def test_a_clear_query_is_answered(items: list[Item], query: Query, wanted: int) -> None:
    assert solve(items, query) == wanted


@pytest.mark.parametrize("name", CATEGORIES)
def test_a_shape_stays_inside_the_rectangle_it_reserves(name: str) -> None:
    category = CATEGORIES[name]
    pose = Pose(0.5, 0.5, 0.6, 0.4)
    rectangle = np.zeros((512, 512), np.uint8)
    cv2.fillPoly(rectangle, [np.round(pose.corners(category.aspect, 0.012) * 512).astype(np.int32)], (1,))
    for seed in range(5):
        brush = Brush(pose, category.aspect, 512, category.rgb)
        category.draw(brush, np.random.default_rng(seed), category.rgb)
        mask = Canvas(np.zeros((512, 512, 3), np.float32), (0.0, 0.0), 0.0).paint(brush, 0.0)
        assert mask.sum() > 0.25 * rectangle.sum()
        assert not (mask & (rectangle == 0)).any()


def test_a_data_set_is_reproducible_and_its_splits_share_no_image(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    options = {"domain": Domain.B, "train": 4, "val": 2, "test": 3, "size": 64, "max_referrals": 2}
    summary = synthesize(tmp_path / "one", **options, progress=lambda done, total: seen.append((done, total)))
    synthesize(tmp_path / "two", **options, workers=2)
    files = {
        root: {
            path.relative_to(tmp_path / root): path.read_bytes()
            for path in sorted((tmp_path / root).rglob("*"))
            if path.is_file()
        }
        for root in ("one", "two")
    }
    assert files["one"] == files["two"]
    assert seen == [(done, 9) for done in range(1, 10)]

    dataset = open_dataset(tmp_path / "one")
    assert {split: len(dataset.split(split)) for split in summary.images} == summary.expressions
    contents = {
        split: {path.read_bytes() for path in {sample.image_path for sample in dataset.split(split)}}
        for split in summary.images
    }
    assert {split: len(images) for split, images in contents.items()} == {"train": 4, "val": 2, "test": 3}
    assert len(set.union(*contents.values())) == 9


def test_values_out_of_range_are_refused(tmp_path: Path) -> None:
    for arguments in ((-1, Domain.A), (0, Domain.A, 32), (0, Domain.A, 256, 0)):
        with pytest.raises(BadInputError, match="seed"):
            render_scene(*arguments)
    with pytest.raises(BadInputError, match="counts"):
        synthesize(tmp_path / "none", domain=Domain.A, train=0, val=0, test=0)
    assert not (tmp_path / "none").exists()


def _pairs(rendering: Rendering) -> list[tuple[Expression, Referral]]:
    return list(zip(rendering.expressions, rendering.scene.referrals, strict=True))
