"""Rendered scenes: equal seeds yield equal bytes, phrases are unambiguous, and the domains differ."""

import re
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from rsrefseg.data.formats import open_dataset
from rsrefseg.engines.errors import BadInputError
from rsrefseg.synth import Domain, Referral, render_scene, synthesize
from rsrefseg.synth.canvas import Brush, Canvas, Pose
from rsrefseg.synth.catalog import CATEGORIES
from rsrefseg.synth.expressions import Expression
from rsrefseg.synth.scene import Rendering, render
from rsrefseg.synth.solver import Item, Query, Relation, solve

SEEDS = range(60)


@pytest.fixture(scope="module")
def renderings() -> list[Rendering]:
    return [render(seed, domain) for domain in Domain for seed in SEEDS]


Phrases = list[tuple[Rendering, Expression, Referral]]


@pytest.fixture(scope="module")
def phrases(renderings: list[Rendering]) -> Phrases:
    return [
        (rendering, expression, referral)
        for rendering in renderings
        for expression, referral in zip(rendering.expressions, rendering.scene.referrals, strict=True)
    ]


def item(category: str = "ship", color: str | None = None, area: float = 0.02, x: float = 0.5, y: float = 0.5) -> Item:
    return Item(category, color, area, x, y, np.array([[x, y]]))


def test_scenes_cover_the_catalogue(renderings: list[Rendering]) -> None:
    for half in (renderings[: len(SEEDS)], renderings[len(SEEDS) :]):
        asked = {referral.category for rendering in half for referral in rendering.scene.referrals}
        assert len(asked) >= 15
        assert asked <= set(CATEGORIES)


def test_masks_fit_their_image_are_large_enough_to_see_and_do_not_overlap(renderings: list[Rendering]) -> None:
    areas = []
    for rendering in renderings:
        scene = rendering.scene
        assert (scene.image.shape, scene.image.dtype) == ((256, 256, 3), np.uint8)
        masks = [referral.mask for referral in scene.referrals]
        assert all((mask.shape, mask.dtype) == ((256, 256), np.bool_) for mask in masks)
        areas += [mask.mean() for mask in masks]
        by_target = dict(zip([expression.target for expression in rendering.expressions], masks, strict=True))
        assert np.sum(list(by_target.values()), axis=0).max() <= 1, "objects do not share pixels"
    assert 0.008 <= min(areas) <= max(areas) <= 0.35
    assert np.mean(np.array(areas) >= 0.01) >= 0.98


def test_every_phrase_has_exactly_one_reading(phrases: Phrases) -> None:
    for rendering, expression, referral in phrases:
        assert solve(rendering.items, expression.query) == expression.target, referral.phrase
        assert rendering.items[expression.target].area == pytest.approx(referral.mask.mean())


def test_phrases_are_true_of_what_is_seen(phrases: Phrases) -> None:
    """Check simple phrases against plain facts about the objects, without the solver."""
    checked = dict.fromkeys(("class", "color", "size", "rank", "side"), 0)
    for rendering, expression, referral in phrases:
        query, target, phrase = expression.query, rendering.items[expression.target], referral.phrase.lower()
        others = [it for it in rendering.items if it.category == referral.category and it is not target]
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


def test_every_kind_of_phrase_occurs_and_the_vocabulary_is_small(phrases: Phrases) -> None:
    kinds = Counter(expression.kind for _, expression, _ in phrases)
    assert set(kinds) == {"class", "color", "place", "size", "relation", "combination"}
    assert min(kinds.values()) >= 0.06 * kinds.total()
    texts = [referral.phrase for *_, referral in phrases]
    assert len(set(re.findall(r"[a-z]+", " ".join(texts).lower()))) <= 150
    assert all(re.fullmatch(r"[A-Z]?[a-z]*( [a-z]+)+", text) for text in texts)


def test_the_domains_differ_in_colour(renderings: list[Rendering]) -> None:
    red, _, blue = np.array([rendering.scene.image.mean(axis=(0, 1)) for rendering in renderings]).T
    assert np.diff((red - blue).reshape(2, len(SEEDS)).mean(axis=1)) > 20


def test_phrases_without_a_target_name_nothing_that_is_seen_and_change_nothing_else(tmp_path: Path) -> None:
    kinds = Counter[bool]()
    for seed in range(30):
        plain, rendering = render(seed, Domain.B, 64), render(seed, Domain.B, 64, absent=4)
        own, nothing = rendering.scene.referrals[:-4], rendering.scene.referrals[-4:]
        assert np.array_equal(plain.scene.image, rendering.scene.image)
        assert [one.phrase for one in plain.scene.referrals] == [one.phrase for one in own]
        for query, referral in zip(rendering.absent, nothing, strict=True):
            assert not referral.mask.any()
            assert not referral.has_target
            alike = [it for it in rendering.items if it.category == query.category]
            if query.color is not None:
                assert f" {query.color} " in referral.phrase.lower()
                assert all(it.color != query.color for it in alike)
            elif query.place == "left":
                assert all(it.x > 0.5 for it in alike)
            elif query.place is None:
                assert not alike
            kinds[bool(alike)] += 1
    assert kinds[True] > 50, "about half of them are near misses"
    synthesize(tmp_path / "scenes", domain=Domain.B, train=2, val=1, test=0, size=64, absent=3)
    samples = open_dataset(tmp_path / "scenes").samples
    assert sum(not sample.has_target for sample in samples) == 9
    assert all(sample.has_target == sample.mask().any() for sample in samples)


@pytest.mark.parametrize("size", [64, 512])
def test_size_changes_the_resolution_not_the_composition(size: int) -> None:
    small, other = render(3, Domain.A), render(3, Domain.A, size)
    assert other.scene.image.shape == (size, size, 3)
    assert [it.category for it in small.items] == [it.category for it in other.items]
    for one, two in zip(small.items, other.items, strict=True):
        assert (one.x, one.y) == pytest.approx((two.x, two.y), abs=0.02)


SHIP, DAM = "ship", "dam"


@pytest.mark.parametrize(
    ("items", "query", "wanted"),
    [
        ([item(DAM), item()], Query(SHIP), 1),
        ([item(), item()], Query(SHIP), None),
        ([item(color="red"), item(color="blue")], Query(SHIP, color="blue"), 1),
        ([item(color="white"), item(color="gray")], Query(SHIP, color="white"), None),
        ([item(area=0.02), item(area=0.03)], Query(SHIP, size="large"), 1),
        ([item(area=0.02), item(area=0.03)], Query(SHIP, size="small"), 0),
        ([item(area=0.030), item(area=0.025)], Query(SHIP, size="large"), None),
        ([item(area=0.030)], Query(SHIP, size="large"), None),
        ([item(x=0.8), item(x=0.3)], Query(SHIP, rank="left"), 1),
        ([item(x=0.30), item(x=0.33)], Query(SHIP, rank="left"), None),
        ([item(x=0.6, y=0.9), item(x=0.1, y=0.8)], Query(SHIP, place="lower left"), 1),
        ([item(x=0.2), item(x=0.47)], Query(SHIP, place="left"), None),
        # The largest of all is elsewhere, and one ship alone at the top left is no larger one.
        ([item(x=0.1, y=0.1), item(area=0.05, x=0.9, y=0.9)], Query(SHIP, size="large", place="upper left"), None),
        ([item(DAM), item(x=0.8)], Query(SHIP, relation=Relation("right", DAM)), 1),
        ([item(), item(DAM, x=0.2), item(DAM, x=0.9)], Query(SHIP, relation=Relation("right", DAM)), None),
        ([item(x=0.1), item(x=0.6), item(DAM)], Query(SHIP, relation=Relation("nearest", DAM)), 1),
        ([item(x=0.1), item(x=0.6), item(DAM)], Query(SHIP, relation=Relation("farthest", DAM)), 0),
        ([item(x=0.3), item(x=0.7), item(DAM)], Query(SHIP, relation=Relation("nearest", DAM)), None),
    ],
)
def test_an_ambiguous_query_has_no_target(items: list[Item], query: Query, wanted: int | None) -> None:
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


@pytest.mark.parametrize("domain", Domain)
def test_processes_give_the_same_bytes_and_splits_share_no_image(domain: Domain, tmp_path: Path) -> None:
    images = {"train": 4, "val": 2, "test": 3}
    options = {"domain": domain, "size": 64, "max_referrals": 2} | images
    summary = synthesize(tmp_path / "one", **options)
    synthesize(tmp_path / "two", **options, workers=2)
    files = [path for path in (tmp_path / "one").rglob("*") if path.is_file()]
    assert len(files) == len([path for path in (tmp_path / "two").rglob("*") if path.is_file()])
    for path in files:
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()

    dataset = open_dataset(tmp_path / "one")
    contents = set()
    for split, count in images.items():
        samples = dataset.split(split)
        assert len(samples) == summary.expressions[split]
        found = {sample.image_path.read_bytes() for sample in samples}
        assert len(found) == summary.images[split] == count
        contents |= found
    assert len(contents) == 9


def test_values_out_of_range_are_refused(tmp_path: Path) -> None:
    for arguments in ((-1, Domain.A), (0, Domain.A, 32), (0, Domain.A, 256, 0)):
        with pytest.raises(BadInputError, match="seed"):
            render_scene(*arguments)
    with pytest.raises(BadInputError, match="counts"):
        synthesize(tmp_path / "none", domain=Domain.A, train=0, val=0, test=0)
    assert not (tmp_path / "none").exists()
