"""Writes regions as GeoJSON, GeoPackage, FlatGeobuf or Shapefile."""

import contextlib
import importlib.util
import json
import struct
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BadInputError, MissingPartError
from ..system.files import atomic_file
from .regions import Region

_SHAPEFILE_SIDECARS = (".prj", ".cpg", ".qix", ".sbn", ".sbx")  # an earlier file's would describe the new one
_DRIVERS = {".geojson": "GeoJSON", ".gpkg": "GPKG", ".fgb": "FlatGeobuf", ".shp": "ESRI Shapefile"}
_FIELDS = {
    "phrase": object, "score": np.float64, "area_px": np.int64, "area_m2": np.float64, "source": object,
    "bundle_sha256": object,
}  # fmt: skip
_HEAD = b'{"type": "FeatureCollection", "features": ['


def check_vector_file(path: Path) -> None:
    """Check that a vector file of this name can be written.

    Raises:
        BadInputError: the suffix names no known format, or a GeoPackage holds other layers.
        MissingPartError: the format needs pyogrio, which is not installed.
    """
    if path.suffix.lower() not in _DRIVERS:
        raise BadInputError(f"'{path}' is not a vector file: its suffix must be one of {', '.join(_DRIVERS)}")
    if not in_degrees(path) and importlib.util.find_spec("pyogrio") is None:
        raise MissingPartError(f"'{path.name}' needs pyogrio: pip install 'rsrefseg[geo]'")
    if path.suffix.lower() == ".gpkg" and path.exists():
        _check_layers(path)


def in_degrees(path: Path) -> bool:
    """Return whether the file holds longitude and latitude (GeoJSON) instead of the raster's own CRS."""
    return path.suffix.lower() == ".geojson"


def write_regions(path: Path, found: Iterable[Region], crs: str | None) -> None:
    """Write regions atomically, in the format that the suffix names.

    Args:
        path: the file to create or replace. A Shapefile's other files follow it.
        found: the regions; none make a valid file without features.
        crs: CRS of the coordinates as WKT; ``None`` for pixels. GeoJSON files do not name it.

    Raises:
        RSRefSegError: the disk is full or the folder cannot be written.
    """
    if in_degrees(path):
        with atomic_file(path, durable=False) as temporary:
            _write_geojson(temporary, found)
        return
    with atomic_file(path) as temporary:
        for suffix in _SHAPEFILE_SIDECARS if path.suffix.lower() == ".shp" else ():
            path.with_suffix(suffix).unlink(missing_ok=True)
        _write_layer(temporary, _DRIVERS[path.suffix.lower()], list(found), crs)
        for sidecar in set(temporary.parent.iterdir()) - {temporary}:
            sidecar.replace(path.with_name(sidecar.name))


def _check_layers(path: Path) -> None:
    """Refuse to replace a GeoPackage that holds other layers."""
    from pyogrio import list_layers
    from pyogrio.errors import DataSourceError

    with contextlib.suppress(DataSourceError):  # not a GeoPackage at all
        if others := [name for name in list_layers(path)[:, 0] if name != path.stem]:
            raise BadInputError(f"'{path}' holds the layer '{others[0]}' of another source: name a new file")


def _write_geojson(path: Path, found: Iterable[Region]) -> None:
    """Write features one by one, each on a line."""
    with path.open("wb") as stream:
        stream.write(_HEAD)
        for region in found:
            feature = {"type": "Feature", "geometry": region.geometry, "properties": region.properties}
            separator = "\n" if stream.tell() == len(_HEAD) else ",\n"
            stream.write((separator + json.dumps(feature, ensure_ascii=False)).encode("utf-8", "backslashreplace"))
        stream.write(b"\n]}\n")


def _write_layer(path: Path, driver: str, found: list[Region], crs: str | None) -> None:
    from pyogrio import raw
    from pyogrio.errors import DataLayerError, DataSourceError, GeometryError

    geometries = np.empty(len(found), object)
    geometries[:] = [None if region.geometry is None else _well_known_bytes(region.geometry) for region in found]
    columns = []
    for name, kind in _FIELDS.items():
        column = np.empty(len(found), kind)
        column[:] = [_plain(region.properties[name]) for region in found]
        columns.append(column)
    with warnings.catch_warnings():
        # Without a CRS there is none to name; Shapefile cuts names of fields to 10 letters.
        warnings.filterwarnings("ignore", message="'crs' was not provided|Normalized/laundered")
        try:
            raw.write(
                path, geometries, columns, list(_FIELDS), geometry_type="Polygon", crs=crs, driver=driver,
                layer=path.stem if driver == "GPKG" else None,
            )  # fmt: skip
        except (DataLayerError, DataSourceError, GeometryError) as error:
            with contextlib.suppress(OSError):
                path.unlink()
            raise OSError(None, " ".join(str(error).split()), str(path)) from error


def _plain(value: Any) -> Any:
    """Return a value as GDAL takes it: text in UTF-8."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def _well_known_bytes(polygon: dict[str, Any]) -> bytes:
    """Return a GeoJSON polygon as little-endian well-known binary."""
    parts = [struct.pack("<BII", 1, 3, len(polygon["coordinates"]))]
    for ring in polygon["coordinates"]:
        parts += [struct.pack("<I", len(ring)), np.asarray(ring, "<f8").tobytes()]
    return b"".join(parts)
