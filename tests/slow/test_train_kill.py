"""Training or merging that fails at any write leaves complete files, and the next run has the same result."""

from pathlib import Path

import pytest

from rsrefseg.checkpoints.model_file import load_model, load_tensors
from rsrefseg.engines.text import Tokenizer
from rsrefseg.runs.base import from_file
from rsrefseg.runs.merge import merge
from rsrefseg.runs.reference_inputs import load_reference_inputs
from rsrefseg.runs.run import Run
from rsrefseg.train.metrics_log import read_metrics
from tests.support.killing import Changes, InjectedError, Moment, run_job
from tests.support.small import train_job, train_small

pytestmark = pytest.mark.usefixtures("one_thread")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def assert_all_files_are_whole(run: Run) -> None:
    """Check that every file under its final name is complete, except for the last lines of the log."""
    if run.record_path.exists():
        run.read_record()
        assert run.tokenizer_path.exists()
        assert run.reference_inputs_path.exists()
    readers = {
        run.tokenizer_path: Tokenizer,
        run.reference_inputs_path: load_reference_inputs,
        run.best_path: load_tensors,
    }
    for path in filter(Path.exists, readers):
        readers[path](path)
    if run.last_path.exists():
        assert run.record_path.exists()
        done = load_tensors(run.last_path).header["position"]["step"]
        steps = [entry["step"] for entry in read_metrics(run.metrics_path) if "loss" in entry]
        assert steps[:done] == list(range(1, done + 1))


def test_an_error_at_any_write_of_training(boxes: Path, small_base: Path, tmp_path: Path) -> None:
    def short_training(out: Path) -> None:
        options = {"epochs": 2, "batch_size": 10, "checkpoint_every_steps": 1}
        train_small(boxes, out, from_file(small_base), resume=True, **options)

    with Changes(tmp_path / "whole") as changes:
        short_training(tmp_path / "whole")
    points = changes.distinct()
    assert len(points) >= 12
    for number in points:
        out = tmp_path / f"run{number}"
        with pytest.raises(InjectedError), Changes(out, at=number):
            short_training(out)
        assert_all_files_are_whole(Run(out))
        short_training(out)
        assert contents(out) == contents(tmp_path / "whole"), changes.names[number - 1]


def test_an_error_at_any_write_of_merging(boxes: Path, small_base: Path, tmp_path: Path) -> None:
    run = train_small(boxes, tmp_path / "run", from_file(small_base), epochs=1).run
    with Changes(run.path) as changes:
        merge(run)
    expected = contents(run.path)
    for number in range(1, len(changes.names) + 1):
        run.merged_path.unlink()
        with pytest.raises(InjectedError), Changes(run.path, at=number):
            merge(run)
        if run.merged_path.exists():
            load_model(run.merged_path)
        merge(run)
        assert contents(run.path) == expected, changes.names[number - 1]


def test_killed_training_ends_the_same(boxes: Path, small_base: Path, tmp_path: Path) -> None:
    order = {"data": str(boxes), "base": str(small_base)}
    whole = tmp_path / "whole"
    changes = run_job(train_job, order | {"out": str(whole)}, whole)
    assert changes is not None
    for share, torn_after in ((0.1, None), (0.4, 700), (0.7, None), (0.95, 100_000)):
        out = tmp_path / f"run{share}"
        moment = Moment(round(share * changes), torn_after)
        assert run_job(train_job, order | {"out": str(out)}, out, moment) is None
        assert_all_files_are_whole(Run(out))
        run_job(train_job, order | {"out": str(out)}, out)
        assert contents(out) == contents(whole), moment
