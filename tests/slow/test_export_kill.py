"""Kill -9 at any moment of an export: there is no bundle, the whole old one or the whole new one, and the next works.

Most kills hit an export whose graphs are copies of graphs exported before (seconds become a tenth of one; everything
else, all files and all moves, is the real thing). Some hit the real exporter.
"""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.errors import BundleError
from tests.support.exported import Exported
from tests.support.killing import KillServer, Moment

JOB = "tests.support.export_jobs:export_job"
KILLS = 20
LAST_CHANGES = 10  # moving the new bundle in and the old one out
TEARS = (0, 40, 700, 5_000, 50_000)  # bytes; the files have 1 to 200 kB
REAL_KILLS = 2


@pytest.fixture(scope="module")
def server() -> Iterator[KillServer]:
    with KillServer(preload=["tests.support.export_jobs", "rsrefseg.export.export"]) as server:
        yield server


@pytest.fixture(scope="module")
def new(exported: Exported) -> dict[str, bytes]:
    return contents(exported.bundle)


@pytest.fixture(scope="module")
def old(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another whole bundle."""
    folder = Path(shutil.copytree(exported.bundle, tmp_path_factory.mktemp("old") / "bundle"))
    Bundle.write_manifest(folder, replace(Bundle.open(folder).manifest, preset="old"))
    (folder / "note.txt").write_text("of the old one")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def found_at(out: Path, old: dict[str, bytes], new: dict[str, bytes]) -> str:
    """What a reader finds: ``none``, ``old`` or ``new``. Anything else fails."""
    try:
        bundle = Bundle.open(out)
    except BundleError as error:
        return "none" if "no bundle at" in str(error) else str(error)
    for record in bundle.manifest.files:
        bundle.verified_path(record.name)
    kinds = {"old": old, "new": new}
    return next(name for name, files in kinds.items() if contents(out) == files)


def moments(changes: int, seed: int) -> list[Moment]:
    """Over the whole export, one at random in each of equal shares, by turns clean and torn; and all of its end."""
    draw = random.Random(seed)
    share = changes / KILLS
    spread = [
        Moment(1 + int((number + draw.random()) * share), draw.choice(TEARS) if number % 2 else None)
        for number in range(KILLS)
    ]
    return spread + [Moment(change) for change in range(changes - LAST_CHANGES + 1, changes + 1)]


def test_killed_at_any_moment_there_is_a_whole_bundle_or_none(
    server: KillServer, exported: Exported, old: Path, new: dict[str, bytes], tmp_path: Path
) -> None:
    """By turns into an empty place and over an old bundle, which stays until the new one is whole."""
    place = tmp_path / "place"
    out = place / "bundle"
    job = {"run": str(exported.run), "out": str(out), "graphs": str(exported.bundle)}

    def prepare(with_old: bool) -> None:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        if with_old:
            shutil.copytree(old, out)

    prepare(with_old=True)
    changes = server.run(JOB, job, watched=place).changes
    assert changes is not None
    assert contents(out) == new
    seen: list[str] = []
    kills = 0
    for number, moment in enumerate(moments(changes, seed=30)):
        with_old = number % 2 == 0 or number >= KILLS
        prepare(with_old)
        kills += server.run(JOB, job, watched=place, moment=moment).killed
        state = found_at(out, contents(old), new)
        assert state in (("old", "new") if with_old else ("none", "new")), f"{state} after {moment}"
        seen.append(state)
        server.run(JOB, job, watched=place)
        assert contents(out) == new, f"another bundle after {moment}"
        assert [path.name for path in place.iterdir()] == ["bundle"], f"leftovers after {moment}"
    assert kills >= KILLS
    assert set(seen) == {"none", "old", "new"}, "the moments miss a state"


def test_killed_again_and_again_the_last_export_is_whole_and_alone(
    server: KillServer, exported: Exported, old: Path, new: dict[str, bytes], tmp_path: Path
) -> None:
    """Leftovers of one do not disturb the next, whatever they are."""
    place = tmp_path / "place"
    out = Path(shutil.copytree(old, place / "bundle"))
    job = {"run": str(exported.run), "out": str(out), "graphs": str(exported.bundle)}
    draw = random.Random(31)
    for _ in range(6):
        server.run(JOB, job, watched=place, moment=Moment(draw.randrange(1, 60), draw.choice((None, *TEARS))))
        assert found_at(out, contents(old), new) in ("old", "new")
    server.run(JOB, job, watched=place)
    assert contents(out) == new
    assert [path.name for path in place.iterdir()] == ["bundle"]


def test_the_real_exporter_killed_leaves_nothing_half_done(
    server: KillServer, exported: Exported, new: dict[str, bytes], tmp_path: Path
) -> None:
    """It is also another process than the one that made the fixture: whole, it writes the very same bytes."""
    place = tmp_path / "place"
    place.mkdir()
    out = place / "bundle"
    real = {"run": str(exported.run), "out": str(out)}
    changes = server.run(JOB, real, watched=place).changes
    assert changes is not None
    assert contents(out) == new
    draw = random.Random(32)
    for number in range(REAL_KILLS):
        shutil.rmtree(out)
        moment = Moment(draw.randrange(2, changes // 2), draw.choice(TEARS) if number % 2 else None)
        assert server.run(JOB, real, watched=place, moment=moment).killed
        assert found_at(out, {}, new) == "none"
        server.run(JOB, real | {"graphs": str(exported.bundle)}, watched=place)
        assert contents(out) == new
        assert [path.name for path in place.iterdir()] == ["bundle"]
