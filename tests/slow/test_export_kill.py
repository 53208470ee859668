"""A killed export leaves no bundle, the old one or the new one, and the next export works."""

import shutil
from pathlib import Path

from msgspec.structs import replace

from rsrefseg.engines.bundle.bundle import Bundle
from tests.support.export_jobs import export_job
from tests.support.exported import Exported
from tests.support.killing import Moment, run_job
from tests.support.runs import contents


def test_killed_at_any_moment_the_old_bundle_or_the_new_one_is_whole(exported: Exported, tmp_path: Path) -> None:
    """Graphs are copies of exported graphs; all files and moves are real."""
    old, new = Path(shutil.copytree(exported.bundle, tmp_path / "old")), contents(exported.bundle)
    Bundle.write_manifest(old, replace(Bundle.open(old).manifest, preset="old"))
    place = tmp_path / "place"
    out = place / "bundle"
    job = {"run": str(exported.run), "out": str(out), "graphs": str(exported.bundle)}
    shutil.copytree(old, out)
    changes = run_job(export_job, job, place)
    assert changes is not None
    seen = set()
    for moment in (Moment(changes // 3, torn_after=700), *(Moment(changes - back) for back in range(4, 18, 2))):
        shutil.rmtree(place)
        shutil.copytree(old, out)
        assert run_job(export_job, job, place, moment) is None
        opened = Bundle.open(out)
        seen.add(opened.manifest.preset)
        assert contents(out) == (contents(old) if opened.manifest.preset == "old" else new), moment
        run_job(export_job, job, place)
        assert contents(out) == new, moment
        assert [path.name for path in place.iterdir()] == ["bundle"], f"leftovers after {moment}"
    assert seen == {"old", "small"}, "the moments miss a state"


def test_the_real_exporter_killed_leaves_nothing_behind(exported: Exported, tmp_path: Path) -> None:
    """An uninterrupted export in another process writes the same bytes."""
    place = tmp_path / "place"
    place.mkdir()
    out, new = place / "bundle", contents(exported.bundle)
    real = {"run": str(exported.run), "out": str(out)}
    assert run_job(export_job, real, place, Moment(5)) is None
    assert not out.exists()
    run_job(export_job, real, place)
    assert contents(out) == new
    assert [path.name for path in place.iterdir()] == ["bundle"]
