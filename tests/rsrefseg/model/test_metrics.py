"""Metrics equal manually computed values under both protocols."""

import json

import numpy as np
import pytest
from PIL import Image

from rsrefseg.data.masks import resize_nearest
from rsrefseg.evaluation.metrics import PRECISION_THRESHOLDS, RMSIN_SIZE, Protocol, ReferringMetrics


def row(start: int, stop: int, width: int = 20) -> np.ndarray:
    """Return a mask, (1, width), set from start to stop."""
    mask = np.zeros((1, width), dtype=bool)
    mask[:, start:stop] = True
    return mask


EMPTY = row(0, 0)


def test_manually_computed_scores() -> None:
    metrics = ReferringMetrics(Protocol.RSREFSEG)
    ious = [
        metrics.update(row(0, 10), row(0, 10), "ship"),  # 10 / 10
        metrics.update(row(0, 6), row(0, 10), "ship"),  # 6 / 10
        metrics.update(row(0, 4), row(2, 8), "bridge"),  # 2 / 8
        metrics.update(row(0, 4), EMPTY, "bridge"),  # 0 / 4
    ]
    result = metrics.result()
    assert ious == [1.0, 0.6, 0.25, 0.0]
    assert result.samples == 4
    assert result.gIoU == pytest.approx((1 + 0.6 + 0.25) / 4, abs=1e-12)
    assert result.cIoU == pytest.approx((10 + 6 + 2) / (10 + 10 + 8 + 4), abs=1e-12)
    # 0.6 is above 0.5 but not strictly above 0.6.
    assert result.precision_at == {0.5: 0.5, 0.6: 0.25, 0.7: 0.25, 0.8: 0.25, 0.9: 0.25}
    assert list(result.per_class) == ["bridge", "ship"]
    assert result.per_class["ship"].gIoU == pytest.approx(0.8, abs=1e-12)
    assert result.per_class["ship"].cIoU == pytest.approx(16 / 20, abs=1e-12)
    assert result.per_class["bridge"].samples == 2


@pytest.mark.parametrize("threshold", PRECISION_THRESHOLDS)
def test_an_iou_on_the_threshold_counts_for_rmsin_only(threshold: float) -> None:
    # One row repeated 480 times over 480 columns, so that the protocol's resize changes nothing.
    truth = row(0, 100, RMSIN_SIZE).repeat(RMSIN_SIZE, axis=0)
    prediction = row(0, round(100 * threshold), RMSIN_SIZE).repeat(RMSIN_SIZE, axis=0)
    passed = {}
    for protocol in Protocol:
        metrics = ReferringMetrics(protocol)
        assert metrics.update(prediction, truth) == threshold
        passed[protocol] = metrics.result().precision_at[threshold]
    assert passed == {Protocol.RSREFSEG: 0.0, Protocol.RMSIN: 1.0}


def test_empty_prediction_for_empty_truth_is_right_for_rsrefseg_and_nothing_for_rmsin() -> None:
    scores = {}
    for protocol in Protocol:
        metrics = ReferringMetrics(protocol)
        metrics.update(EMPTY, EMPTY)
        result = metrics.result()
        scores[protocol] = (result.gIoU, result.cIoU, result.precision_at[0.9])
        metrics.update(row(0, 5), row(0, 10))
        assert metrics.result().cIoU == 0.5  # the empty pair adds no pixel
    assert scores == {Protocol.RSREFSEG: (1.0, 1.0, 1.0), Protocol.RMSIN: (0.0, 0.0, 0.0)}


@pytest.mark.parametrize("protocol", Protocol)
def test_expressions_without_a_target_have_their_own_scores(protocol: Protocol) -> None:
    metrics = ReferringMetrics(protocol)
    metrics.update(row(0, 5), row(0, 10))
    assert (metrics.result().n_acc, metrics.result().t_acc) == (None, 1.0)
    for prediction, truth in ((EMPTY, row(0, 10)), (row(5, 9), row(0, 2)), (EMPTY, EMPTY), (row(0, 1), EMPTY)):
        metrics.update(prediction, truth)
    metrics.update(EMPTY, EMPTY)
    result = metrics.result()
    assert result.no_target_samples == 3
    assert result.n_acc == pytest.approx(2 / 3)  # two of three empty
    assert result.t_acc == pytest.approx(2 / 3)  # two of three found something, if only the wrong thing
    assert result.to_dict().items() >= {"N-acc": result.n_acc, "T-acc": result.t_acc}.items()


def test_rmsin_weighs_every_image_alike_whatever_its_size() -> None:
    small, large = (row(0, side // 2, side).repeat(side, axis=0) for side in (10, 960))
    metrics = {protocol: ReferringMetrics(protocol) for protocol in Protocol}
    for metric in metrics.values():
        metric.update(small, small)
        metric.update(np.zeros_like(large), large)
    assert metrics[Protocol.RMSIN].result().cIoU == 0.5
    assert metrics[Protocol.RSREFSEG].result().cIoU == pytest.approx(50 / (50 + 480 * 960), abs=1e-12)


@pytest.mark.parametrize("shape", [(800, 800), (1000, 700), (37, 61), (480, 480), (1, 1)])
def test_masks_are_resized_as_pillow_does(shape: tuple[int, int]) -> None:
    mask = np.random.default_rng(5).random(shape) > 0.5
    expected = np.asarray(Image.fromarray(mask).resize((RMSIN_SIZE, RMSIN_SIZE), Image.Resampling.NEAREST))
    np.testing.assert_array_equal(resize_nearest(mask, RMSIN_SIZE, RMSIN_SIZE), expected)


def test_a_centre_between_two_pixels_takes_the_later() -> None:
    # 512 -> 480: the centre of pixel 22 falls on 22.5 * 512 / 480 = 24 exactly.
    ramp = row(24, 512, width=512).repeat(512, axis=0)
    expected = row(22, RMSIN_SIZE, RMSIN_SIZE).repeat(RMSIN_SIZE, axis=0)
    np.testing.assert_array_equal(resize_nearest(ramp, RMSIN_SIZE, RMSIN_SIZE), expected)


def test_the_result_has_its_protocol_and_is_plain_json() -> None:
    metrics = ReferringMetrics(Protocol.RMSIN)
    metrics.update(row(0, 4), row(0, 4), "ship")
    metrics.update(row(0, 4), row(0, 4))  # without a class: in the total only
    values = json.loads(json.dumps(metrics.result().to_dict()))
    assert values["protocol"] == "rmsin"
    assert (values["Pr@0.5"], values["samples"]) == (1.0, 2)
    assert values["per_class"]["ship"] == {"gIoU": 1.0, "cIoU": 1.0, "samples": 1}


@pytest.mark.parametrize(
    ("prediction", "truth"),
    [(row(0, 1), row(0, 1, width=21)), (row(0, 1).astype(np.float32), row(0, 1)), (row(0, 1)[None], row(0, 1)[None])],
)
def test_masks_that_cannot_be_compared_are_refused(prediction: np.ndarray, truth: np.ndarray) -> None:
    metrics = ReferringMetrics()
    with pytest.raises(ValueError, match="must be"):
        metrics.update(prediction, truth)
    with pytest.raises(ValueError, match="no sample"):
        metrics.result()
