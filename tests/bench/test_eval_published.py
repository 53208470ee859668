"""Published rows beside a measured one: only where they belong, only as context, and what is unclear is marked."""

import dataclasses
import json
from pathlib import Path

import pytest

from rsrefseg.bench.accuracy.published import ROWS, SPLIT_SAMPLES, PublishedContext, PublishedRow, published_context
from rsrefseg.bench.accuracy.report import EvaluationReport
from rsrefseg.evaluation.metrics import PRECISION_THRESHOLDS, MetricsResult, Protocol
from tests.support.printing import printed


def context(**changes: object) -> PublishedContext:
    real = {
        "data_format": "RRSIS-D",
        "split": "test",
        "samples": SPLIT_SAMPLES,
        "protocol": "rsrefseg",
        "shuffled": False,
    }
    return published_context(**(real | changes))


def report(published: PublishedContext) -> EvaluationReport:
    precision = dict.fromkeys(PRECISION_THRESHOLDS, 0.25)
    return EvaluationReport(
        subject="run runs/001",
        runtime="torch",
        model_sha256="0" * 64,
        bundle_sha256=None,
        data="rrsis-d",
        data_format="RRSIS-D",
        split="test",
        shuffled=False,
        resized_masks=0,
        metrics=MetricsResult(Protocol.RSREFSEG, SPLIT_SAMPLES, 0.5, 0.75, precision, {}),
        published=published,
    )


def test_the_rows_are_those_of_the_table() -> None:
    rows = {row.method: row for row in ROWS}
    assert rows["RSRefSeg-b"].precision_at == (72.82, 67.35, 56.66, 45.86, 26.78)
    assert (rows["RSRefSeg-b"].cIoU, rows["RSRefSeg-b"].unclear) == (76.05, ("gIoU",))
    assert rows["RSRefSeg-l"].unclear == ("cIoU", "gIoU")
    assert rows["FIANet"].gIoU == 64.01
    assert all(list(row.precision_at) == sorted(row.precision_at, reverse=True) for row in ROWS)


def test_the_real_test_split_has_them_beside_the_measured_row() -> None:
    text = printed(report(context()))
    assert text.index("measured here") < text.index("published: LAVT") < text.index("published: RSRefSeg-b")
    line = next(line for line in text.splitlines() if "RSRefSeg-b" in line)
    assert line.split()[2:] == ["0.6368?", "0.7605", "0.7282", "0.6735", "0.5666", "0.4586", "0.2678"]
    assert "protocol rsrefseg" in " ".join(text.split())
    assert "arXiv 2501.06809" in text
    assert "context, not a comparison" in " ".join(text.split())


def test_json_keeps_them_apart_from_what_was_measured() -> None:
    document = json.loads(json.dumps(report(context()).as_dict()))
    assert (document["gIoU"], document["cIoU"]) == (0.5, 0.75)
    published = document["published"]
    assert (published["split"], published["data"]) == ("test", "RRSIS-D")
    assert [row["method"] for row in published["rows"]] == [row.method for row in ROWS]
    large = published["rows"][-1]
    assert (large["gIoU"], large["Pr@0.5"], large["unclear"]) == (0.6467, None, ["cIoU", "gIoU"])
    bare = report(PublishedContext(reason="x")).as_dict()
    assert {key: value for key, value in bare.items() if key != "published"} == {
        key: value for key, value in document.items() if key != "published"
    }


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"data_format": "JSONL"}, "the data is JSONL"),
        ({"split": "val"}, "not 'val'"),
        ({"samples": 469}, "has 3,481 expressions and this one 469"),
        ({"shuffled": True}, "shuffled"),
    ],
)
def test_where_they_do_not_belong_one_line_says_why(changes: dict, told: str) -> None:
    found = context(**changes)
    assert found.rows == ()
    text = " ".join(printed(report(found)).split())
    assert "no published rows beside it" in text
    assert told in text
    assert "RSRefSeg-b" not in text
    assert report(found).as_dict()["published"] == {"rows": [], "reason": found.reason}


def test_another_protocol_is_said_first() -> None:
    assert (
        context(protocol="rmsin").cautions[0] == "RSRefSeg's own rows follow protocol rsrefseg, the measured one rmsin"
    )


def test_a_row_is_whole_or_refused() -> None:
    with pytest.raises(ValueError, match="4 precisions"):
        PublishedRow("x", (1.0, 2.0, 3.0, 4.0), 1.0, 1.0)
    with pytest.raises(ValueError, match="no figure is called mIoU"):
        PublishedRow("x", (), 1.0, 1.0, ("mIoU",))


def test_the_report_says_where_things_were_written() -> None:
    written = dataclasses.replace(
        report(context()), predictions=Path("preds"), worst_cases_file=Path("w.png"), worst_cases=()
    )
    assert "predictions written to preds" in printed(written)
    assert written.as_dict()["predictions"] == "preds"
    assert "predictions" not in written.record()
