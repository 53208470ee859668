"""Kill -9 in an export: there is no bundle, the whole old one or the whole new one, and the next export works.

``tests/engines/test_files.py`` fails at every step of writing a folder; these two are real kills.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from rsrefseg.engines.bundle.bundle import Bundle
from tests.support.exported import Exported
from tests.support.killing import KillServer, Moment

JOB = "tests.support.export_jobs:export_job"


@pytest.fixture(scope="module")
def server() -> Iterator[KillServer]:
    with KillServer(preload=["tests.support.export_jobs", "rsrefseg.export.export"]) as server:
        yield server


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_killed_while_writing_or_moving_the_old_bundle_or_the_new_one_is_whole(
    server: KillServer, exported: Exported, tmp_path: Path
) -> None:
    """Graphs are copies of graphs exported before; all files and moves are real."""
    old, new = Path(shutil.copytree(exported.bundle, tmp_path / "old")), contents(exported.bundle)
    Bundle.write_manifest(old, replace(Bundle.open(old).manifest, preset="old"))
    place = tmp_path / "place"
    out = place / "bundle"
    job = {"run": str(exported.run), "out": str(out), "graphs": str(exported.bundle)}
    shutil.copytree(old, out)
    changes = server.run(JOB, job, watched=place).changes
    assert changes is not None
    seen = set()
    for moment in (Moment(changes // 3, torn_after=700), *(Moment(changes - back) for back in range(4, 18, 2))):
        shutil.rmtree(place)
        shutil.copytree(old, out)
        assert server.run(JOB, job, watched=place, moment=moment).killed
        opened = Bundle.open(out)
        seen.add(opened.manifest.preset)
        assert contents(out) == (contents(old) if opened.manifest.preset == "old" else new), moment
        server.run(JOB, job, watched=place)
        assert contents(out) == new, moment
        assert [path.name for path in place.iterdir()] == ["bundle"], f"leftovers after {moment}"
    assert seen == {"old", "small"}, "the moments miss a state"


def test_the_real_exporter_killed_leaves_nothing_behind(server: KillServer, exported: Exported, tmp_path: Path) -> None:
    """Another process than the one that made the fixture: whole, it writes the very same bytes."""
    place = tmp_path / "place"
    place.mkdir()
    out, new = place / "bundle", contents(exported.bundle)
    real = {"run": str(exported.run), "out": str(out)}
    assert server.run(JOB, real, watched=place, moment=Moment(5)).killed
    assert not out.exists()
    server.run(JOB, real, watched=place)
    assert contents(out) == new
    assert [path.name for path in place.iterdir()] == ["bundle"]
