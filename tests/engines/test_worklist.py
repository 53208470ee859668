"""The work list of a batch: which images, in which order, and a place of its own for each."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsrefseg.engines.errors import BadInputError
from rsrefseg.engines.worklist import Item, is_batch, split_arguments, work_list

FILES = (
    "scenes/a/x.tif", "scenes/a/x.png", "scenes/b/x.tif", "scenes/y.JPG", "scenes/y.tfw", "scenes/.z.png",
    "scenes/.hidden/x.png", "scenes/results/old.png", "other/x.tif", "runway",
)  # fmt: skip
OUT = Path("scenes/results")


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to a folder with some files."""
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def places(*images: str, shard: str | None = None) -> list[str]:
    return [item.place for item in work_list(images, OUT, shard)]


@pytest.mark.usefixtures("files")
def test_a_folder_is_searched_without_sidecars_hidden_files_and_results() -> None:
    assert places("scenes") == ["a/x.png", "a/x.tif", "b/x.tif", "y.JPG"]
    assert work_list(["scenes"], OUT)[0] == Item("scenes/a/x.png", "a/x.png")


@pytest.mark.usefixtures("files")
def test_a_glob_takes_what_it_matches() -> None:
    assert places("scenes/*/x.tif") == ["a/x.tif", "b/x.tif"]
    assert places("scenes/**/*.tif") == ["a/x.tif", "b/x.tif"]
    assert places("scenes/y.*") == ["y.JPG", "y.tfw"]


def test_lists_are_relative_to_their_folder(files: Path) -> None:
    (files / "scenes/list.txt").write_text("# north\nb/x.tif\n\n  y.JPG\nb/../b/x.tif\ns3://bucket/c.tif\n")
    assert work_list(["scenes/list.txt"], OUT) == [
        Item("scenes/b/x.tif", "b/x.tif"), Item("scenes/y.JPG", "y.JPG"), Item("s3://bucket/c.tif", "s3/bucket/c.tif"),
    ]  # fmt: skip
    (files / "list.csv").write_text('\ufeffsensor,image\nS2,"scenes/b/x.tif"\nS2,missing.tif\n')
    assert places("list.csv") == ["scenes/b/x.tif", "missing.tif"]
    (files / "bare.csv").write_text("scenes/b/x.tif\n")
    (files / "long.csv").write_text(f"image,geometry\na.tif,{'0' * 2**18}\n")
    for wrong in ("bare.csv", "long.csv", "none.csv", "none.txt"):
        with pytest.raises(BadInputError, match=wrong):
            work_list([wrong], OUT)


def test_images_of_several_arguments_never_share_a_place(files: Path) -> None:
    assert places("scenes/a", "scenes/b", "other/x.tif", "scenes/b/x.tif") == [
        "scenes/a/x.png", "scenes/a/x.tif", "scenes/b/x.tif", "other/x.tif",
    ]  # fmt: skip
    (elsewhere := files.parent / "elsewhere.tif").touch()
    assert places(str(elsewhere), "runway") == [str(elsewhere).lstrip("/"), "runway"]
    urls = [f"https://me:secret@host/a.tif?key={key}" for key in "xy"]
    shown = places(*urls)
    assert len(set(shown)) == 2
    assert not any("secret" in place or "key" in place for place in shown)
    assert places("/vsizip/../../a.zip/b.tif", "runway")[0].startswith("vsizip/a.zip/b.tif-")


@given(count=st.integers(1, 20), parts=st.integers(1, 7))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_shards_are_the_whole_without_overlap(count: int, parts: int) -> None:
    names = [f"none/{number:02}.tif" for number in range(count)]
    whole = work_list([*names, "none/other.tif"], OUT)
    shards = [work_list([*names, "none/other.tif"], OUT, f"{part}/{parts}") for part in range(1, parts + 1)]
    assert sorted(item for part in shards for item in part) == sorted(whole)
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


@pytest.mark.parametrize("shard", ["0/3", "4/3", "1", "a/b", "-1/3", "1/0"])
def test_a_wrong_shard_is_refused(shard: str) -> None:
    with pytest.raises(BadInputError, match="shard"):
        work_list(["a.tif"], OUT, shard)


@pytest.mark.usefixtures("files")
def test_no_name_of_a_file_is_a_phrase() -> None:
    phrases = ["the ship", "where is it?", "ships: the large one", "x" * 400, "the [red] one"]
    named = ["scenes/a/x.tif", "missing.TIF", "scenes", "scenes/*/x.tif", "list.csv", "s3://b/a", "runway"]
    named.append('NETCDF:"cube.nc":red')
    assert split_arguments(["any", *named, *phrases]) == (["any", *named], phrases)
    for empty in ("", " "):  # a variable of a script that is not set
        with pytest.raises(BadInputError, match="empty name"):
            split_arguments([empty, "the ship"])
    for wrong in (["a.tif", "the ship", "b.tif"], ["a.tif", "b.tif"]):  # a phrase too early, and none
        with pytest.raises(BadInputError, match=r"b\.tif"):
            split_arguments(wrong)
    assert not is_batch(["scenes/a/x.tif"])
    assert not is_batch(["missing.tif"])
    for several in (["scenes"], ["scenes/*.tif"], ["a.txt"], ["a.tif", "b.tif"]):
        assert is_batch(several)


@pytest.mark.usefixtures("files")
def test_nothing_found_is_an_error() -> None:
    Path("empty").mkdir()
    for nothing in ("empty", "scenes/*.gif"):
        with pytest.raises(BadInputError, match="no image"):
            work_list(["scenes", nothing], OUT)
