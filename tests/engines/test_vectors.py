"""Polygons, probabilities and their options, read back with pyogrio and rasterio."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pytest
import rasterio
from pyogrio import raw
from rasterio.features import rasterize
from rasterio.transform import from_origin

from rsrefseg.engines.errors import BadInputError, MissingPartError
from rsrefseg.engines.images.images import open_scene, read_scene
from rsrefseg.engines.images.names import shown_name
from rsrefseg.engines.images.scene import Scene
from rsrefseg.engines.results.map_options import MapOptions
from rsrefseg.engines.results.results import write_results
from rsrefseg.engines.results.simplify import simplified
from rsrefseg.engines.segmentation import Segmentation
from tests.engines.test_maps import PLACES, quarters
from tests.support.commands import assert_refused, run_here
from tests.support.rasters import write_raster

SUFFIXES = (".gpkg", ".fgb", ".shp", ".geojson")
SIZE = (60, 80)


class Fixed(Segmentation):
    """A segmentation whose logits have the image's size already."""

    def full_size_logits(self) -> np.ndarray:
        logits = self.mask_logits.copy()
        if self.valid is not None:
            logits[~self.valid] = -30
        return logits


def spots() -> np.ndarray:
    """Logits of a square with a hole (216 px), a disc of radius 9, and a single pixel."""
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    logits = np.where((rows - 40) ** 2 + (columns - 50) ** 2 < 81, 1.5, -3).astype(np.float32)
    logits[5:20, 5:20], logits[9:12, 9:12], logits[50, 5] = 4, -3, 2
    return logits


def write(tmp_path: Path, place: dict[str, Any], logits: np.ndarray | None = None, **options: Any) -> list[Path]:
    bands = np.ones((3, *SIZE), np.uint8)
    bands[:, :, -8:] = 0
    scene = read_scene(write_raster(tmp_path / "a.tif", bands, nodata=0, **place).path)
    found = Fixed("the field", spots() if logits is None else logits, SIZE, 60, valid=scene.valid)
    return write_results(tmp_path / "out", "a", scene, [found], tmp_path / "a.tif", maps=MapOptions(**options))


def read(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
    """What GDAL reads: the layer's facts, GeoJSON geometries, and properties."""
    meta, _, geometries, columns = raw.read(path)
    shapes = [parse(geometry) for geometry in geometries]
    rows = [dict(zip(meta["fields"], row, strict=True)) for row in zip(*columns, strict=True)]
    return meta, shapes, rows


def parse(data: bytes) -> dict[str, Any]:
    kind, count = struct.unpack_from("<II", data, 1)
    assert (data[0], kind) == (1, 3)
    rings, offset = [], 9
    for _ in range(count):
        (length,) = struct.unpack_from("<I", data, offset)
        points = np.frombuffer(data, "<f8", 2 * length, offset + 4).reshape(-1, 2)
        rings.append(points.tolist())
        offset += 4 + points.nbytes
    return {"type": "Polygon", "coordinates": rings}


@pytest.mark.parametrize("suffix", SUFFIXES[:3])
@pytest.mark.parametrize("place", PLACES)
def test_polygons_in_other_formats_lie_where_the_mask_lies(tmp_path: Path, place: str, suffix: str) -> None:
    files = write(tmp_path, PLACES[place], vector=tmp_path / f"other{suffix}")
    assert files[1] == tmp_path / f"other{suffix}"
    with rasterio.open(files[0]) as masks:
        band, crs, transform = masks.read(1), masks.crs, masks.transform
    meta, shapes, rows = read(files[1])
    on_earth = crs is not None and (crs.is_projected or crs.is_geographic)
    if on_earth:
        assert rasterio.CRS.from_user_input(meta["crs"]) == crs
    drawn = rasterize(shapes, band.shape, transform=transform if on_earth else rasterio.Affine.identity())
    assert np.array_equal(drawn, band == 1)
    assert len(rows) == 3
    for row in rows:
        assert (row["phrase"], row["source"]) == ("the field", str(tmp_path / "a.tif"))
        assert bool(row["area_m2"] > 0) == on_earth
        assert 0.8 < row["score"] < 1
    assert sorted(row["area_px"] for row in rows) == [1, 216, 249]
    assert not list((tmp_path / "out").glob("*.geojson"))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("place", [{}, PLACES["no CRS"]])
def test_nothing_found_is_a_layer_without_features(tmp_path: Path, suffix: str, place: dict[str, Any]) -> None:
    files = write(tmp_path, place, np.full(SIZE, -3, np.float32), vector=tmp_path / f"other{suffix}")
    meta, _, geometries, _ = raw.read(files[1])
    assert len(geometries) == 0
    if suffix != ".geojson":
        assert meta["geometry_type"] == "Polygon"
        assert {"phrase", "score", "area_m2", "source"} <= set(meta["fields"])


def test_an_old_vector_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    for suffix in SUFFIXES:
        for _ in range(2):
            path = write(tmp_path, {}, vector=tmp_path / f"other{suffix}")[1]
        assert pyogrio.read_info(path, force_feature_count=True)["features"] == 3
    assert not [entry for entry in tmp_path.iterdir() if entry.name.startswith(".")]


@pytest.mark.parametrize("kind", ["uint8", "float"])
def test_probabilities_are_a_band_for_each_phrase(tmp_path: Path, kind: str) -> None:
    masks, _, path, *_ = write(tmp_path, PLACES["rotated"], probability=kind)
    expected = 1 / (1 + np.exp(-spots()))
    with rasterio.open(path) as made, rasterio.open(masks) as mask:
        assert path.name == "a_probability.tif"
        assert (made.crs, made.transform, made.shape) == (mask.crs, mask.transform, mask.shape)
        assert made.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert made.descriptions == ("the field",)
        values = made.read(1, masked=True)
        assert np.array_equal(np.ma.getmaskarray(values), mask.read(1) == 255)
        shares = values.astype(np.float64) * made.scales[0]
    assert np.abs(shares - expected).max() < (0.0021 if kind == "uint8" else 1e-6)


def test_small_regions_are_left_out_of_the_polygons_alone(tmp_path: Path) -> None:
    def areas(**options: Any) -> list[int]:
        masks, vectors, *_, document = write(tmp_path, {}, **options)
        result = json.loads(document.read_text())["results"][0]
        assert result["area_px"] == 466
        assert result["area_m2"] == pytest.approx(466 / 4, rel=0.01)
        with rasterio.open(masks) as made:
            assert np.count_nonzero(made.read(1) == 1) == 466
        return sorted(one["properties"]["area_px"] for one in json.loads(vectors.read_text())["features"])

    assert areas() == [1, 216, 249]
    assert areas(min_area="216px") == [216, 249]
    assert areas(min_area="217px") == [249]
    assert areas(min_area="0.5m2") == [216, 249]
    assert areas(min_area="60m2") == [249]


def test_square_metres_need_a_place_on_earth(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="in px"):
        write(tmp_path, PLACES["no CRS"], min_area="5m2")
    assert not (tmp_path / "out").exists()


def test_simplified_outlines_have_fewer_points_and_the_exact_figures(tmp_path: Path) -> None:
    def features(**options: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(write(tmp_path, {}, **options)[1].read_text())["features"]
        return found

    exact, fewer = features(), features(simplify_px=1)
    assert [one["properties"] for one in exact] == [one["properties"] for one in fewer]
    counts = [[sum(map(len, one["geometry"]["coordinates"])) for one in found] for found in (exact, fewer)]
    assert all(less <= more for more, less in zip(*counts, strict=True))
    assert max(counts[1]) < max(counts[0]) / 2


def test_simplified_outlines_never_cross(tmp_path: Path) -> None:
    """Rings of noise, whose simplified forms would often cross: exact rings come back instead."""
    noise = np.random.default_rng(3).normal(size=(60, 60)) > -0.2
    shapes = rasterio.features.shapes(noise.astype(np.uint8), mask=noise, connectivity=4)
    kept = 0
    for shape, _ in shapes:
        rings = [np.asarray(ring) for ring in shape["coordinates"]]
        fewer = simplified(rings, 1.5)
        assert len(fewer) == len(rings)
        kept += fewer is rings
    assert kept
    bow = [np.array([[0, 0], [8, 8], [8, 0], [0, 8], [0, 0]], float)]
    assert simplified(bow, 0.1) is bow


def test_polygons_across_the_antimeridian_are_cut(tmp_path: Path) -> None:
    logits = np.full(SIZE, -3, np.float32)
    logits[10:20, 30:50] = logits[40:44, 2:6] = logits[50:54, 60:70] = 3
    for place in (
        {"crs": "EPSG:4326", "transform": from_origin(179.6, 10, 0.01, 0.01)},  # to 180.4
        {"crs": "EPSG:4326", "transform": from_origin(-180.4, 10, 0.01, 0.01)},
        {"crs": "EPSG:32601", "transform": from_origin(122_000, 1_110_000, 1100, 1100)},
    ):
        vectors = write(tmp_path, place, logits)[1]
        features = json.loads(vectors.read_text())["features"]
        parts = 0
        for feature in features:
            kind, shape = feature["geometry"]["type"], feature["geometry"]["coordinates"]
            for polygon in shape if kind == "MultiPolygon" else [shape]:
                x, y = np.array(polygon[0]).T
                parts += 1
                assert np.ptp(x) < 1
                assert np.abs(x).max() <= 180
                assert np.dot(x[:-1] - x[0], y[1:] - y[0]) > np.dot(x[1:] - x[0], y[:-1] - y[0])
        assert (len(features), parts) == (3, 4)


def test_pixels_without_data_make_no_polygons(tmp_path: Path) -> None:
    files = write(tmp_path, {})
    assert len(json.loads(files[1].read_text())["features"]) == 3


def test_options_that_cannot_be_used_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad: tuple[dict[str, Any], ...] = (
        {"vector": Path("a.kml")}, {"min_area": "5"}, {"min_area": "-5m2"}, {"simplify_px": -1.0},
        {"simplify_px": float("nan")}, {"probability": "int8"},
    )  # fmt: skip
    for options in bad:
        with pytest.raises(BadInputError):
            MapOptions(**options)
    photo = Scene(np.zeros((*SIZE, 3), np.uint8))
    with pytest.raises(BadInputError, match="photo"):
        write_results(tmp_path, "a", photo, [Fixed("a", spots(), SIZE, 60)], maps=MapOptions(simplify_px=1))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    MapOptions(vector=Path("a.geojson"))
    with pytest.raises(MissingPartError, match=r"rsrefseg\[geo\]"):
        MapOptions(vector=Path("a.gpkg"))


def test_the_command_writes_what_it_is_asked_for(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_raster(tmp_path / "a.tif", quarters())
    asked = ("infer", "a.tif", "the red square", "--bundle", folder, "--json")
    ran = run_here(
        capsys, *asked, "--probability", "uint8", "--vector", "a.gpkg", "--simplify", "0.7", "--min-area", "1m2"
    )
    assert ran.code == 0, ran.err
    names = ["results/a_masks.tif", "a.gpkg", "results/a_probability.tif", "results/a_overlay.png", "results/a.json"]
    assert ran.result["files"] == names
    assert pyogrio.read_info("a.gpkg")["features"] == 1
    assert_refused(run_here(capsys, *asked, "--vector", "a.kml"), "a.kml")


def test_a_geopackage_with_other_layers_and_the_crs_of_an_old_shapefile_stay_apart(tmp_path: Path) -> None:
    package, shapes = tmp_path / "project.gpkg", tmp_path / "a.shp"
    write(tmp_path, PLACES["UTM, south"], vector=package)
    write(tmp_path, PLACES["UTM, south"], vector=package)  # its own layer
    raw.write(package, np.empty(0, object), [], [], geometry_type="Point", crs="EPSG:4326", layer="wells", append=True)
    before = package.read_bytes()
    with pytest.raises(BadInputError, match="wells"):
        MapOptions(vector=package)
    assert package.read_bytes() == before
    write(tmp_path, PLACES["UTM, south"], vector=shapes)
    write(tmp_path, PLACES["no CRS"], vector=shapes)
    assert read(shapes)[0]["crs"] is None


def test_messages_do_not_show_the_secrets_of_a_url() -> None:
    name = "/vsicurl/http://me:hidden@127.0.0.1:1/a.tif?sig=hidden"
    with pytest.raises(BadInputError) as caught, open_scene(name, 10**6):
        pass
    assert "hidden" not in str(caught.value)
    assert shown_name(name) == "/vsicurl/http://127.0.0.1:1/a.tif"
    assert shown_name("what?.tif") == "what?.tif"
