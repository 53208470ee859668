"""A bench that is killed goes on where it was, with the same model, machine and settings only."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rsrefseg.bench.latency.journal import Journal, open_journal
from rsrefseg.bench.latency.rounds import Observation
from rsrefseg.engines.errors import BadInputError, RSRefSegError
from tests.support.killing import KillServer, Moment

ROUNDS = 4
IDENTITY: dict[str, Any] = {
    "bundle": "a" * 64,
    "machine": {"cpu": "one", "memory_mib": 1024.5, "versions": {"numpy": "2.4.6"}},
    "contenders": ["torch", "onnxruntime"],
    "picture": (480, 640),
}


def round_of(number: int) -> list[Observation]:
    return [
        Observation(number, contender, scenario, {"total": number + 0.1, "sam_encoder": 1 / 3})
        for contender in IDENTITY["contenders"]
        for scenario in ("first_phrase", "next_phrase")
    ]


def measuring_job(path: str) -> None:
    """What a bench does with its log, to the end."""
    journal = open_journal(Path(path), IDENTITY)
    if not journal.entries("peaks"):
        journal.append("peaks", {"flops_per_s": 2e11})
    for number in range(journal.rounds_done, ROUNDS):
        journal.append_round(round_of(number))


@pytest.fixture(scope="module")
def server() -> Iterator[KillServer]:
    with KillServer(preload=["tests.bench.test_journal"]) as server:
        yield server


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Of a bench that was done."""
    path = tmp_path / "bench.jsonl"
    measuring_job(str(path))
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def without_date(path: Path) -> list[dict[str, Any]]:
    header, *entries = lines(path)
    return [{key: value for key, value in header.items() if key != "date"}, *entries]


def assert_done(journal: Journal) -> None:
    assert journal.rounds_done == ROUNDS
    assert journal.observations == [seen for number in range(ROUNDS) for seen in round_of(number)]


def test_what_was_written_is_read_again(log: Path) -> None:
    before = log.read_bytes()
    journal = open_journal(log, IDENTITY)
    assert_done(journal)
    assert journal.entries("peaks") == [{"flops_per_s": 2e11}]
    assert journal.entries("startup") == []
    assert log.read_bytes() == before


def test_the_first_line_says_what_is_measured(log: Path) -> None:
    header = lines(log)[0]
    assert header["kind"] == "bench"
    assert header["identity"]["bundle"] == IDENTITY["bundle"]
    assert header["date"].startswith("20")


def test_a_round_is_on_the_disk_when_append_returns(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "bench.jsonl"
    journal = open_journal(path, IDENTITY)
    assert len(lines(path)) == 1
    journal.append_round(round_of(0))
    assert [entry["kind"] for entry in lines(path)[1:]] == ["observation"] * 4 + ["round"]


def test_killed_at_any_moment_it_goes_on_to_the_same_log(server: KillServer, log: Path, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    path = folder / "bench.jsonl"
    order = {"path": str(path)}
    changes = server.run("tests.bench.test_journal:measuring_job", order, watched=folder).changes
    assert changes is not None
    moments = [Moment(change, torn) for change in range(1, changes + 1) for torn in (None, 0, 1, 90, 250, 560)]
    killed = 0
    for moment in moments:
        shutil.rmtree(folder)
        killed += server.run("tests.bench.test_journal:measuring_job", order, watched=folder, moment=moment).killed
        server.run("tests.bench.test_journal:measuring_job", order, watched=folder)
        assert without_date(path) == without_date(log), moment
    assert killed > len(moments) / 2


@pytest.mark.parametrize("cut", [1, 30, 200, 700])
def test_a_round_that_was_not_closed_is_discarded(log: Path, cut: int) -> None:
    log.write_bytes(log.read_bytes()[:-cut])
    journal = open_journal(log, IDENTITY)
    done = journal.rounds_done
    assert done < ROUNDS
    assert journal.observations == [seen for number in range(done) for seen in round_of(number)]
    for number in range(done, ROUNDS):
        journal.append_round(round_of(number))
    assert_done(open_journal(log, IDENTITY))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"bundle": "b" * 64}, r"bundle aaaaaaaaaaaa\.\.\. there, bbbbbbbbbbbb\.\.\. here"),
        ({"machine": {**IDENTITY["machine"], "cpu": "two"}}, r"machine\.cpu one there, two here"),
        (
            {"machine": {**IDENTITY["machine"], "versions": {"numpy": "2.4.6", "torch": "2.15.0"}}},
            r"machine\.versions\.torch none there, 2\.15\.0 here",
        ),
        (
            {"machine": {**IDENTITY["machine"], "gpu": "NVIDIA H100, driver 580.1"}},
            r"machine\.gpu none there, NVIDIA H100",
        ),
        ({"contenders": ["torch"]}, "contenders torch,onnxruntime there, torch here"),
        ({"picture": (480, 480)}, "picture 480,640 there, 480,480 here"),
    ],
)
def test_another_measurement_is_refused_by_what_differs(log: Path, change: dict[str, Any], told: str) -> None:
    before = log.read_bytes()
    with pytest.raises(BadInputError, match=told):
        open_journal(log, IDENTITY | change)
    assert log.read_bytes() == before


def test_a_log_of_another_gpu_is_refused_by_both_names(tmp_path: Path) -> None:
    def identity(gpu: str | None) -> dict[str, Any]:
        return IDENTITY | {"machine": {**IDENTITY["machine"], "gpu": gpu}}

    path = tmp_path / "bench.jsonl"
    open_journal(path, identity("NVIDIA GeForce RTX 4090 Laptop GPU, driver 580.95.05"))
    told = r"machine\.gpu NVIDIA GeForce RTX 4090 Laptop GPU, driver 580\.95\.05 there, NVIDIA H200, driver 580\.1 here"
    with pytest.raises(BadInputError, match=told):
        open_journal(path, identity("NVIDIA H200, driver 580.1"))
    with pytest.raises(BadInputError, match=r"driver 580\.95\.05 there, none here"):
        open_journal(path, identity(None))


def test_a_log_from_before_gpus_were_told_goes_on_where_there_is_none(log: Path) -> None:
    assert "gpu" not in lines(log)[0]["identity"]["machine"]
    assert_done(open_journal(log, IDENTITY | {"machine": {**IDENTITY["machine"], "gpu": None}}))


@pytest.mark.parametrize(
    "content",
    ["hello", "hello\n", "{}\n", "[1]\n", '{"kind": "bench", "schema_version": 0, "identity": {}}\n', "\0\0\0\n"],
)
def test_other_files_are_refused_and_stay_as_they_are(tmp_path: Path, content: str) -> None:
    path = tmp_path / "notes.txt"
    path.write_text(content)
    with pytest.raises(BadInputError, match=r"'.*notes.txt' is no log of"):
        open_journal(path, IDENTITY)
    assert path.read_text() == content


@pytest.mark.parametrize("name", ["round", "contender", "spans_ms"])
def test_a_line_damaged_before_the_end_is_told(log: Path, name: str) -> None:
    entries = lines(log)
    entries[3][name] = -1
    log.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    with pytest.raises(BadInputError, match=r"damaged \(round 0\)"):
        open_journal(log, IDENTITY)


def test_two_benches_do_not_share_a_log(log: Path) -> None:
    one, other = open_journal(log, IDENTITY), open_journal(log, IDENTITY)
    one.append_round(round_of(ROUNDS))
    with pytest.raises(RSRefSegError, match="another bench writes to"):
        other.append_round(round_of(ROUNDS))
    assert open_journal(log, IDENTITY).rounds_done == ROUNDS + 1


def test_a_place_that_cannot_be_written_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="cannot read"):
        open_journal(tmp_path, IDENTITY)
    (tmp_path / "file").touch()
    with pytest.raises(RSRefSegError, match="cannot"):
        open_journal(tmp_path / "file" / "bench.jsonl", IDENTITY)
