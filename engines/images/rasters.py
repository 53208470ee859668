"""Reads rasters with GDAL, by windows: bands, valid pixels and contrast are settled once for the whole raster."""

import contextlib
import os
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import BadInputError
from .bands import choose_bands
from .contrast import Method, Stretch, to_8_bits
from .names import shown_name, without_secrets
from .photos import check_size
from .scene import RasterInfo, Scene
from .tiles import Window

_SAMPLE_SIDE = 2048  # of the decimated read that statistics are taken from, px
_STRIP_PIXELS = 1 << 22
_CACHE_BYTES = 256 << 20
_process_wide_lock = threading.Lock()


class Raster:
    """An opened raster whose windows are read as 8-bit RGB.

    Args:
        name: for messages.
        dataset: an opened rasterio dataset.
        bands: see ``choose_bands``.
        stretch: how values become 8 bits.

    Attributes:
        info: what was chosen.
        height, width: size, px.
    """

    def __init__(self, name: str, dataset: Any, bands: str | None, stretch: Stretch) -> None:
        from rasterio.enums import MaskFlags

        self.height, self.width = int(dataset.height), int(dataset.width)
        self._name, self._dataset, self._stretch = name, dataset, stretch
        colours = [interpretation.name for interpretation in dataset.colorinterp]
        descriptions = [text or "" for text in dataset.descriptions]
        choice = choose_bands(name, descriptions, colours, bands)
        notes = [choice.note] if choice.note else []
        is_placed = dataset.crs is not None and not dataset.transform.is_identity
        if not is_placed and (reason := _why_in_pixels(dataset)):
            notes.append(f"{reason}: results are in pixels")
        self._bands = choice.bands
        kinds = [str(dataset.dtypes[band - 1]) for band in self._bands]
        if any(kind.startswith("complex") for kind in kinds):
            raise BadInputError(f"'{name}' holds complex values: write their amplitude to a file first")
        self._dtype = np.result_type(*map(np.dtype, kinds))
        no_mask = {MaskFlags.all_valid, MaskFlags.alpha}
        self._has_mask = any(not no_mask & set(dataset.mask_flag_enums[band - 1]) for band in self._bands)
        self._alpha = self._opacity(colours, notes)
        self._colours = self._colour_table(colours[self._bands[0] - 1], bands)
        self._limits = None if self._colours is not None else self._limits_of()
        self.info = RasterInfo(
            crs=dataset.crs.to_wkt() if is_placed else None,
            transform=tuple(dataset.transform)[:6],
            bands=self._bands,
            descriptions=tuple(descriptions[band - 1] for band in self._bands),
            stretch="colour table" if self._colours is not None else stretch.name_for(self._dtype),
            limits=tuple(self._limits or ()),
            notes=tuple(notes),
        )

    def read(
        self, window: Window, shape: tuple[int, int] | None = None
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
        """Read a window as (h, w, 3) uint8 RGB and (h, w) bool valid pixels; invalid pixels are 0.

        Args:
            window: rows and columns.
            shape: (h, w) to reduce the window to, by overviews or by leaving pixels out; its own size by default.
        """
        (top, bottom), (left, right) = window
        shape = shape or (bottom - top, right - left)
        with _as_bad_input(self._name):
            values, usable = self._values(window, shape)
        if self._colours is not None:
            coloured = self._colours[values[0]]
            valid = usable[0] & (coloured[..., 3] > 0)
            return coloured[..., :3] * valid[..., None], valid
        image, valid = np.empty((*shape, 3), np.uint8), np.asarray(usable.any(axis=0))
        # An integer that equals nodata in one band of a valid pixel is a value, such as saturated red.
        integers = values.dtype.kind in "ui"
        for channel in range(3):
            place = min(channel, len(self._bands) - 1)
            shown = values[place] if self._limits is None else to_8_bits(values[place], self._limits[place])
            np.multiply(shown, valid if integers else usable[place], out=image[..., channel])
        return image, valid

    def read_all(self) -> Scene:
        """Read the whole raster, strip by strip."""
        image = np.empty((self.height, self.width, 3), np.uint8)
        valid = np.empty((self.height, self.width), np.bool_)
        for top, bottom in self._strips():
            image[top:bottom], valid[top:bottom] = self.read(((top, bottom), (0, self.width)))
        return Scene(image, None if valid.all() else valid, self.info)

    def reduced(self, longest: int) -> Scene:
        """Read the whole raster reduced to a long side of at most ``longest`` px."""
        parts = [self.read(window, shape) for window, shape in self._reduced_windows(longest)]
        image, valid = (np.concatenate(part) for part in zip(*parts, strict=True))
        return Scene(image, None if valid.all() else valid, self.info)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, px."""
        return self.height, self.width

    def _reduced_windows(self, longest: int) -> Iterator[tuple[Window, tuple[int, int]]]:
        """Yield strips and their reduced shapes; in one piece, GDAL would decode each block once for every band."""
        step = -(-max(self.size) // longest)
        rows = step * max(1, _STRIP_PIXELS // (step * self.width))
        for top in range(0, self.height, rows):
            bottom = min(top + rows, self.height)
            yield ((top, bottom), (0, self.width)), (-(-(bottom - top) // step), -(-self.width // step))

    def _strips(self) -> Iterator[tuple[int, int]]:
        """Yield ranges of rows that hold whole blocks of the file."""
        block = max(1, int(self._dataset.block_shapes[0][0]))
        rows = block * max(1, _STRIP_PIXELS // (block * self.width))
        for top in range(0, self.height, rows):
            yield top, min(top + rows, self.height)

    def _values(self, window: Window, shape: tuple[int, int]) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
        """Read a window of the chosen bands as (B, *shape), and which of the values can be used."""
        part: dict[str, Any] = {"window": window, "out_shape": (len(self._bands), *shape)}
        values = self._dataset.read(self._bands, out_dtype=self._dtype, **part)
        if self._has_mask:
            usable = self._dataset.read_masks(self._bands, **part) > 0
        else:
            usable = np.ones(values.shape, np.bool_)
        if self._alpha is not None:
            usable &= self._dataset.read(self._alpha, window=window, out_shape=shape) > 0
        return self._stretch.prepare(values, usable)

    def _opacity(self, colours: list[str], notes: list[str]) -> int | None:
        """Return the number of the alpha band if it holds nothing but 0 and full scale; GDAL marks others so too."""
        if "alpha" not in colours or (band := colours.index("alpha") + 1) in self._bands:
            return None
        kind = np.dtype(self._dataset.dtypes[band - 1])
        full = np.iinfo(kind).max if kind.kind in "ui" else 1
        for top, bottom in self._strips():
            values = self._dataset.read(band, window=((top, bottom), (0, self.width)))
            if not ((values == full) | (values == 0)).all():
                notes.append(f"band {band} is marked as alpha but holds other values: it is not used as opacity")
                return None
        return band

    def _colour_table(self, colour: str, asked: str | None) -> npt.NDArray[np.uint8] | None:
        """Return the colour table of a palette image, (2^bits, 4) uint8 RGBA."""
        as_is = self._stretch.method in (Method.AUTO, Method.NONE)
        if colour != "palette" or len(self._bands) != 1 or asked is not None or not as_is:
            return None
        table = np.zeros((2 ** (8 * np.dtype(self._dataset.dtypes[self._bands[0] - 1]).itemsize), 4), np.uint8)
        for index, rgba in self._dataset.colormap(self._bands[0]).items():
            table[index] = rgba
        return table

    def _limits_of(self) -> list[tuple[float, float]] | None:
        """Return the limits of each band, by a decimated read of the whole; ``None`` for plain 8 bits."""
        if self._stretch.method in (Method.AUTO, Method.NONE) and self._dtype == np.uint8:
            bits = int(self._dataset.tags(self._bands[0], ns="IMAGE_STRUCTURE").get("NBITS", 8))
            return [(0.0, 2.0**bits - 1)] * len(self._bands) if bits < 8 else None
        samples: list[list[npt.NDArray[Any]]] = [[] for _ in self._bands]
        for window, shape in self._reduced_windows(_SAMPLE_SIDE):
            for sample, band, mask in zip(samples, *self._values(window, shape), strict=True):
                sample.append(band[mask])
        return [self._stretch.limits(np.concatenate(sample)) for sample in samples]


@contextlib.contextmanager
def open_raster(name: str, max_pixels: int | None, bands: str | None = None, stretch: str = "auto") -> Iterator[Raster]:
    """Open a raster by file name, URL or any other name that GDAL knows.

    Raises:
        BadInputError: it cannot be read, has more than ``max_pixels`` pixels (None: no limit), or lacks a band.
    """
    chosen, shown = Stretch.parse(stretch), shown_name(name)
    import rasterio
    from rasterio.errors import RasterioIOError

    with rasterio.Env(**gdal_options()), contextlib.ExitStack() as opened:
        with _as_bad_input(shown):
            try:
                dataset = opened.enter_context(open_dataset(Path(name).absolute() if Path(name).exists() else name))
            except RasterioIOError as error:
                raise _unopened(shown, error) from error
            _check(shown, dataset, max_pixels)
            raster = Raster(shown, dataset, bands, chosen)
        yield raster


def open_dataset(name: Path | str, mode: str = "r", **profile: Any) -> Any:
    """Open a rasterio dataset without its warning about missing georeferences."""
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning

    with _process_wide_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        return rasterio.open(name, mode, **profile)


def files_of(image: str) -> list[Path]:
    """Return a local image and, of a VRT, the files that it shows.

    Raises:
        OSError: the VRT cannot be read.
    """
    if not image.lower().endswith(".vrt"):
        return [Path(image)]
    with open_dataset(Path(image).absolute()) as dataset:
        return [Path(name) for name in dataset.files]


@contextlib.contextmanager
def _as_bad_input(name: str) -> Iterator[None]:
    """Raise errors of reading as ``BadInputError``."""
    unreadable: tuple[type[Exception], ...] = (*gdal_errors(), OSError, ValueError)
    try:
        yield
    except BadInputError:
        raise
    except MemoryError as error:
        raise BadInputError(f"not enough memory to read the raster '{name}'") from error
    except UnicodeEncodeError as error:
        raise BadInputError(f"GDAL cannot read a name that is not UTF-8, {name!a}: rename it") from error
    except unreadable as error:
        raise BadInputError(f"the raster '{name}' is corrupt or cut short ({_reason(error)})") from error


def gdal_options() -> dict[str, int]:
    """Return options for GDAL: a cache that does not grow with the machine's memory, unless the user sets one."""
    return {} if "GDAL_CACHEMAX" in os.environ else {"GDAL_CACHEMAX": _CACHE_BYTES}


def gdal_errors() -> tuple[type[Exception], ...]:
    """Return the classes of errors that rasterio raises for what GDAL reports."""
    from rasterio._err import CPLE_BaseError
    from rasterio.errors import RasterioError

    return RasterioError, CPLE_BaseError


def _why_in_pixels(dataset: Any) -> str | None:
    """Return what a raster without a place has instead of a CRS and a transform; None for nothing."""
    if dataset.gcps[0]:
        return "the raster is placed by ground control points only (gdalwarp places it)"
    if dataset.rpcs is not None:
        return "the raster is placed by RPCs only (gdalwarp -rpc places it)"
    return "the raster has a CRS but no transform" if dataset.crs is not None else None


def _check(name: str, dataset: Any, max_pixels: int | None) -> None:
    if not dataset.count:
        if dataset.subdatasets:
            raise BadInputError(
                f"'{name}' holds {len(dataset.subdatasets)} rasters: name one of them, e.g."
                f" '{shown_name(dataset.subdatasets[0])}'"
            )
        raise BadInputError(f"the raster '{name}' has no bands")
    check_size(name, dataset.width, dataset.height, max_pixels or dataset.width * dataset.height)


def _unopened(name: str, error: Exception) -> BadInputError:
    reason = _reason(error)
    if "not recognized" in reason:
        return BadInputError(f"'{name}' is not an image or raster of a format that Pillow or GDAL reads")
    return BadInputError(f"the raster '{name}' cannot be opened ({reason})")


def _reason(error: BaseException) -> str:
    """Return GDAL's first message in one line, without the secrets of URLs."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(without_secrets(str(error)).split())[:300] or type(error).__name__
