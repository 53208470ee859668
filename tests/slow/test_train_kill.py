"""Kill -9 at any moment of training or merging: what lies there is whole or not there, and the next run goes on."""

import random
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from rsrefseg.checkpoints.model_file import load_model, load_tensors
from rsrefseg.engines.text import Tokenizer
from rsrefseg.train.metrics_log import read_metrics
from rsrefseg.train.reference_inputs import load_reference_inputs
from rsrefseg.train.run import Run
from tests.support.killing import KillServer, Moment, Outcome

KILLS = 24
TRAIN_JOB = "tests.support.small:train_job"
TEARS = (0, 40, 700, 5_000, 100_000, 500_000)  # bytes; the run's files have 1 to 800 kB


@pytest.fixture(scope="module")
def server() -> Iterator[KillServer]:
    with KillServer(preload=["tests.support.small", "rsrefseg.train.merge", "pycocotools.mask"]) as server:
        yield server


@pytest.fixture(scope="module")
def arguments(boxes: Path, small_base: Path) -> dict[str, str]:
    return {"data": str(boxes), "base": str(small_base)}


@pytest.fixture(scope="module")
def whole(
    server: KillServer, arguments: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Outcome]:
    """The run that nobody disturbed, and how many changes it made."""
    out = tmp_path_factory.mktemp("whole") / "run"
    outcome = server.run(TRAIN_JOB, arguments | {"out": str(out)}, watched=out)
    assert outcome.changes is not None
    return out, outcome


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_all_files_are_whole(run: Run) -> None:
    """Whatever bears its final name is read without complaint; the log may only lack its last lines."""
    if run.record_path.exists():
        run.read_record()
        assert run.tokenizer_path.exists()
        assert run.reference_inputs_path.exists()
    if run.tokenizer_path.exists():
        Tokenizer(run.tokenizer_path)
    if run.reference_inputs_path.exists():
        load_reference_inputs(run.reference_inputs_path)
    if run.best_path.exists():
        assert load_tensors(run.best_path).header["step"] in (5, 10)
    if run.last_path.exists():
        assert run.record_path.exists()
        position = load_tensors(run.last_path).header["position"]
        steps = [entry["step"] for entry in read_metrics(run.metrics_path) if "loss" in entry]
        assert steps[: position["step"]] == list(range(1, position["step"] + 1))


def draw_moments(changes: int, seed: int) -> list[Moment]:
    """Kill moments over all of a run, one at random in each of equal shares, by turns clean and torn."""
    draw = random.Random(seed)
    share = changes / KILLS
    return [
        Moment(1 + int((number + draw.random()) * share), draw.choice(TEARS) if number % 2 else None)
        for number in range(KILLS)
    ]


def test_killed_at_any_moment_training_goes_on_to_the_same_end(
    server: KillServer, arguments: dict[str, str], whole: tuple[Path, Outcome], tmp_path: Path
) -> None:
    expected, outcome = whole
    assert outcome.changes is not None
    kills = 0
    for number, moment in enumerate(draw_moments(outcome.changes, seed=20)):
        out = tmp_path / f"run{number}"
        order = arguments | {"out": str(out)}
        kills += server.run(TRAIN_JOB, order, watched=out, moment=moment).killed
        assert_all_files_are_whole(Run(out))
        server.run(TRAIN_JOB, order, watched=out)
        assert contents(out) == contents(expected), f"another end after {moment}"
        shutil.rmtree(out)
    assert kills >= 20


def test_killed_again_and_again_training_still_ends_the_same(
    server: KillServer, arguments: dict[str, str], whole: tuple[Path, Outcome], tmp_path: Path
) -> None:
    expected, outcome = whole
    assert outcome.changes is not None
    draw = random.Random(21)
    out = tmp_path / "run"
    order = arguments | {"out": str(out)}
    kills = 0
    for _ in range(8):
        moment = Moment(draw.randrange(1, outcome.changes // 2), draw.choice((None, *TEARS)))
        kills += server.run(TRAIN_JOB, order, watched=out, moment=moment).killed
        assert_all_files_are_whole(Run(out))
    server.run(TRAIN_JOB, order, watched=out)
    assert contents(out) == contents(expected)
    assert kills >= 4


def test_killed_while_merging_there_is_a_whole_model_or_none(
    server: KillServer, whole: tuple[Path, Outcome], tmp_path: Path
) -> None:
    run = Run(tmp_path / "run")
    shutil.copytree(whole[0], run.path)
    order = {"run": str(run.path)}
    outcome = server.run("tests.support.small:merge_job", order, watched=run.path)
    expected = contents(run.path)
    assert outcome.changes is not None
    moments = [Moment(change) for change in range(1, outcome.changes + 1)]
    moments += [Moment(change, torn) for change in (1, 2) for torn in (40, 100_000)]
    for moment in moments:
        run.merged_path.unlink()
        assert server.run("tests.support.small:merge_job", order, watched=run.path, moment=moment).killed
        if run.merged_path.exists():
            load_model(run.merged_path)
        server.run("tests.support.small:merge_job", order, watched=run.path)
        assert contents(run.path) == expected


def test_the_harness_kills_where_it_says(server: KillServer, arguments: dict[str, str], tmp_path: Path) -> None:
    """The first change is the folder itself; a torn file is as long as told, and hidden."""
    first = tmp_path / "first"
    clean = server.run(TRAIN_JOB, arguments | {"out": str(first)}, watched=first, moment=Moment(1))
    assert clean == Outcome(None, signal.SIGKILL)
    assert not first.exists()
    torn = tmp_path / "torn"
    outcome = server.run(TRAIN_JOB, arguments | {"out": str(torn)}, watched=torn, moment=Moment(1, 700))
    assert outcome == Outcome(None, signal.SIGXFSZ)
    lengths = {name: len(content) for name, content in contents(torn).items()}
    hidden = next(name for name in lengths if name.endswith("/tokenizer.json"))
    assert hidden.startswith(".partial.")
    assert lengths == {".lock": 0, hidden: 700}
