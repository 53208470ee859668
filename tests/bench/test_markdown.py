"""A bench report as Markdown and as a picture: whole, readable, and honest about wrong answers."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rsrefseg.bench.latency.markdown import render_markdown
from rsrefseg.bench.latency.plot import _title, draw_plot
from rsrefseg.engines.errors import MissingPartError, RSRefSegError
from rsrefseg.engines.system.tables import three_digits
from tests.support import ROOT
from tests.support.bench_documents import PHRASE_STAGES, SPEEDS, STAGES_MS, WRONG, made_document


def tables(text: str) -> dict[str, list[list[str]]]:
    """Cells by the title above each table."""
    found: dict[str, list[list[str]]] = {}
    title = ""
    for line in text.splitlines():
        if line.startswith("#"):
            title = line.lstrip("# ")
        elif line.startswith("|"):
            found.setdefault(title, []).append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return found


def as_rows(table: list[list[str]]) -> list[dict[str, str]]:
    head, _, *rows = table
    return [dict(zip(head, row, strict=True)) for row in rows]


def test_every_table_is_a_table_of_github() -> None:
    found = tables(render_markdown(made_document()))
    assert list(found) == [
        "First phrase",
        "Next phrase",
        "Stages",
        "Stages beside their floors",
        "Peaks of this machine",
        "Floors elsewhere, ms",
        "Start-up and memory",
        "The device meanwhile",
    ]
    for head, rule, *rows in found.values():
        assert rows
        assert all(len(row) == len(head) == len(rule) for row in rows)
        assert all(re.fullmatch(r"---:?", cell) for cell in rule)


def test_the_machine_the_date_and_the_model_come_first() -> None:
    head = render_markdown(made_document() | {"command": "rsrefseg bench --report out"}).partition("## ")[0]
    told = (
        "preset b",
        "AMD EPYC",
        "2 of 2 cores",
        "torch 2.15.0",
        "`113883c7b730`",
        "2026-01-02",
        "10 rounds",
        "800 x 1200",
    )
    for words in (*told, "`rsrefseg bench --report out`"):
        assert words in head


def test_a_row_has_its_time_its_ratio_and_its_agreement_with_intervals() -> None:
    torch, onnxruntime, *_ = as_rows(tables(render_markdown(made_document()))["Next phrase"])
    time_ms = sum(STAGES_MS[stage] for stage in PHRASE_STAGES) / SPEEDS["onnxruntime"]
    low, middle, high = (three_digits(factor * time_ms) for factor in (0.95, 1, 1.05))
    assert onnxruntime["p50 ms"] == f"{middle} [{low} - {high}]"
    assert onnxruntime["vs torch"] == "3.20x [2.88 - 3.52]"
    assert torch["vs torch"] == ""
    assert onnxruntime["agreement"] == "IoU 0.9991"
    assert onnxruntime["of its first phrase"] == "2.9%"
    assert "images/s" not in onnxruntime, "no image is encoded for a next phrase"


def test_a_wrong_contender_is_marked_wherever_its_times_stand() -> None:
    text = render_markdown(made_document())
    assert text.index(f"**WRONG: {WRONG} answers otherwise") < text.index("## ")
    found = tables(text)
    for title in ("First phrase", "Next phrase"):
        row = as_rows(found[title])[-1]
        assert row["contender"] == f"**{WRONG}**"
        assert row["agreement"] == "**WRONG IoU 0.9120**"
    assert all("(**WRONG " in row[WRONG] for row in as_rows(found["Stages"]))
    floors = [row for row in as_rows(found["Stages beside their floors"]) if row["contender"] == WRONG]
    assert floors
    assert all(row["agreement"].startswith("**WRONG ") for row in floors)
    assert text.count("WRONG") == 1 + 2 + len(STAGES_MS) + len(floors)


def test_a_report_in_which_all_is_right_says_nothing_of_wrong() -> None:
    document = made_document()
    for row in document["latencies"]:
        row["wrong"] = False
    for row in document["contenders"]:
        row["agrees"] = True
    assert "WRONG" not in render_markdown(document)


def test_stages_stand_beside_their_floors() -> None:
    rows = as_rows(tables(render_markdown(made_document()))["Stages beside their floors"])
    assert len(rows) == len(SPEEDS) * len(STAGES_MS)
    assert [row["contender"] for row in rows[: len(SPEEDS)]] == list(SPEEDS), "one stage's contenders stand together"
    torch = next(row for row in rows if (row["stage"], row["contender"]) == ("sam encoder", "torch"))
    assert (torch["floor ms"], torch["p50 ms"], torch["of the floor"], torch["GFLOP"]) == (
        "2400",
        "13600",
        "18%",
        "972",
    )


def test_no_text_can_end_a_cell_or_a_line() -> None:
    document = made_document()
    document["contenders"][0]["providers"] = {"sam_encoder": "a | b\nc"}
    found = tables(render_markdown(document))
    assert as_rows(found["Start-up and memory"])[0]["runs on"] == r"a \| b c"
    assert r"- a \| b" in render_markdown(document)


def test_a_picture_is_shown_where_there_is_one() -> None:
    assert "](report.png)" in render_markdown(made_document(), "report.png")
    assert "](" not in render_markdown(made_document())


@pytest.mark.parametrize("missing", list(made_document()))
def test_what_a_document_lacks_is_left_out(missing: str, tmp_path: Path) -> None:
    document = made_document()
    del document[missing]
    assert render_markdown(document).startswith("# Latency of ")
    draw_plot(document, tmp_path / "report.png")


@pytest.mark.parametrize("key", ["p50_low_ms", "p90_ms", "agreement", "wrong", "phrases_per_s", "floor_share"])
def test_an_older_document_with_less_in_its_rows_is_shown_too(key: str, tmp_path: Path) -> None:
    document = made_document()
    document["latencies"] = [{name: row[name] for name in row if name != key} for row in document["latencies"]]
    assert "First phrase" in tables(render_markdown(document))
    draw_plot(document, tmp_path / "report.png")


def test_an_empty_document_is_an_empty_report(tmp_path: Path) -> None:
    assert render_markdown({}).startswith("# Latency of a bundle")
    draw_plot({}, tmp_path / "report.png")


def test_a_picture_names_the_gpu_that_was_measured() -> None:
    machine = {"cpu": "a processor", "usable_cores": 16, "gpu": "NVIDIA H200, driver 580.159.04"}
    document = {"bundle": {"preset": "b"}, "machine": machine, "peaks": {"cpu": {}}}
    assert _title(document) == "preset b, a processor, 16 cores"
    assert _title(document | {"peaks": {"cuda": {}}}) == "preset b, NVIDIA H200, a processor, 16 cores"


def picture(document: dict[str, Any], folder: Path) -> np.ndarray:
    draw_plot(document, folder / "report.png")
    with Image.open(folder / "report.png") as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def test_the_picture_is_as_wide_as_a_readme_and_the_same_each_time(tmp_path: Path) -> None:
    pixels = picture(made_document(), tmp_path)
    assert pixels.shape[1] == 1800
    assert pixels.shape[0] < 2000
    assert np.array_equal(pixels, picture(made_document(), tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["report.png"]


def test_wrong_bars_are_hatched_not_filled(tmp_path: Path) -> None:
    """Less of the first phrase's blue than where the same times are right."""
    document = made_document()
    hatched = picture(document, tmp_path)
    for row in document["latencies"]:
        row["wrong"] = False
    filled = picture(document, tmp_path)
    blue = (0x00, 0x72, 0xB2)
    assert (hatched == blue).all(-1).sum() < 0.9 * (filled == blue).all(-1).sum()


def test_an_interval_without_end_does_not_squeeze_the_bars(tmp_path: Path) -> None:
    """One of a disturbed machine may reach far beyond all bars: it is cut off, and the axis stays as wide."""
    document = made_document()
    calm = picture(document, tmp_path)
    document["latencies"][0]["p50_high_ms"] *= 1e6
    disturbed = picture(document, tmp_path)
    orange = (0xE6, 0x9F, 0x00)
    widths = [np.ptp(np.nonzero((pixels == orange).all(-1).sum(0) > 30)[0]) for pixels in (calm, disturbed)]
    assert widths[1] > 0.7 * widths[0]


def test_a_picture_that_cannot_be_written_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RSRefSegError, match="cannot"):
        draw_plot(made_document(), tmp_path / "file" / "report.png")


def test_without_matplotlib_the_way_to_it_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("rsrefseg.bench.latency.plot.find_spec", lambda name: None)
    with pytest.raises(MissingPartError, match=re.escape("pip install 'rsrefseg[report]'")):
        draw_plot(made_document(), tmp_path / "report.png")


def test_matplotlib_is_loaded_only_to_draw() -> None:
    """In a process of its own: an edge device has neither it nor torch."""
    code = (
        "import sys\nfrom rsrefseg.bench.latency import journal, markdown, plot, roofline\n"
        "from rsrefseg.bench.system import health, peaks\n"
        "assert not {'matplotlib', 'torch', 'onnx'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0123, "0.012"), (0.5, "0.50"), (1.234, "1.23"), (12.34, "12.3"), (123.4, "123"), (13_600, "13600")],
)
def test_figures_have_three_digits(value: float, text: str) -> None:
    assert three_digits(value) == text
