"""Published rows beside a measured one: only where they belong, and only for context."""

import json
from pathlib import Path

import pytest

from rsrefseg.bench.accuracy.predictors import Predictor
from rsrefseg.bench.accuracy.published import ROWS, SPLIT_SAMPLES, PublishedContext, published_context
from rsrefseg.bench.accuracy.report import EvaluationReport, EvaluationRequest
from rsrefseg.evaluation.metrics import PRECISION_THRESHOLDS, MetricsResult, Protocol
from tests.support.printing import printed


def context(**changes: object) -> PublishedContext:
    real = {"data_format": "RRSIS-D", "split": "test", "samples": SPLIT_SAMPLES}
    return published_context(**({"protocol": "rsrefseg", "shuffled": False} | real | changes))


def report(published: PublishedContext) -> EvaluationReport:
    precision = dict.fromkeys(PRECISION_THRESHOLDS, 0.25)
    return EvaluationReport(
        request=EvaluationRequest(Path("rrsis-d")),
        predictor=Predictor(lambda image, phrases: [], "run runs/001", "torch", "0" * 64),
        data_format="RRSIS-D",
        resized_masks=0,
        metrics=MetricsResult(Protocol.RSREFSEG, SPLIT_SAMPLES, 0.5, 0.75, precision, {}),
        published=published,
    )


def test_the_real_test_split_has_them_beside_the_measured_row() -> None:
    text = printed(report(context()))
    assert text.index("measured here") < text.index("published: LAVT") < text.index("published: RSRefSeg-b")
    line = next(line for line in text.splitlines() if "RSRefSeg-b" in line)
    assert line.split()[2:] == ["-", "0.7605", "0.7282", "0.6735", "0.5666", "0.4586", "0.2678"]
    assert "arXiv 2501.06809" in text
    assert any("rmsin" in caution for caution in context(protocol="rmsin").cautions)
    assert not any("rmsin" in caution for caution in context().cautions)


def test_json_keeps_them_apart_from_what_was_measured() -> None:
    document = json.loads(json.dumps(report(context()).to_dict()))
    assert (document["gIoU"], document["cIoU"]) == (0.5, 0.75)
    published = document.pop("published")
    assert (published["split"], published["data"]) == ("test", "RRSIS-D")
    assert [row["method"] for row in published["rows"]] == list(ROWS)
    assert published["rows"][-1]["gIoU"] is None
    bare = report(PublishedContext(reason="x")).to_dict()
    assert bare.pop("published") == {"rows": [], "reason": "x"}
    assert bare == document


@pytest.mark.parametrize(
    ("changes", "fact"),
    [
        ({"data_format": "JSONL"}, "JSONL"),
        ({"split": "val"}, "not 'val'"),
        ({"samples": 469}, "469"),
        ({"shuffled": True}, "shuffled"),
    ],
)
def test_where_they_do_not_belong_one_line_says_why(changes: dict, fact: str) -> None:
    found = context(**changes)
    assert found.rows == {}
    assert fact in found.reason
    text = " ".join(printed(report(found)).split())
    assert found.reason in text
    assert "RSRefSeg-b" not in text
