"""Selects the bands of a raster that are shown as red, green and blue."""

from collections.abc import Sequence
from typing import NamedTuple

from ..errors import BadInputError

_COLOURS = ("red", "green", "blue")
# Descriptions of red, green and blue, and one more that tells the sensor from others with the same names.
_SENSORS = (
    (_COLOURS, ""),
    (("b04", "b03", "b02"), ""),  # Sentinel-2
    (("b4", "b3", "b2"), "b8a"),  # Sentinel-2 of Earth Engine
    (("sr_b4", "sr_b3", "sr_b2"), "sr_b6"),  # Landsat 8 and 9
    (("sr_b3", "sr_b2", "sr_b1"), "sr_b7"),  # Landsat 4 to 7
)


class BandChoice(NamedTuple):
    """Bands by number, from 1: three for red, green and blue, or one for grey; ``note`` says why if it is a guess."""

    bands: tuple[int, ...]
    note: str = ""


def choose_bands(
    path: str, descriptions: Sequence[str], colours: Sequence[str], asked: str | None = None
) -> BandChoice:
    """Select the bands of a raster.

    Without ``asked``: bands described as red, green and blue or by a known sensor's names, else those marked as such
    colours, else the first three, or the first as grey if there are one or two. Alpha bands do not count.

    Args:
        path: for messages.
        descriptions: of all bands, empty where there is none.
        colours: colour interpretation of all bands, e.g. ``red``, ``gray``, ``alpha``, ``undefined``.
        asked: one or three comma-separated band numbers or descriptions.

    Raises:
        BadInputError: ``asked`` names a band that is not there, or two or more than three.
    """
    names = [description.strip().lower() for description in descriptions]
    if asked is not None:
        return BandChoice(_parse(path, names, list(colours), asked))
    for wanted, witness in _SENSORS:
        if all(name in names for name in wanted) and (not witness or witness in names):
            bands = tuple(names.index(name) + 1 for name in wanted)
            return BandChoice(bands, "" if bands == (1, 2, 3) else f"bands {_listed(bands)} by their descriptions")
    if all(colour in colours for colour in _COLOURS):
        bands = tuple(list(colours).index(colour) + 1 for colour in _COLOURS)
        return BandChoice(bands, "" if bands == (1, 2, 3) else f"bands {_listed(bands)} as the file marks them")
    free = tuple(number for number, colour in enumerate(colours, 1) if colour != "alpha") or (1,)
    if len(free) < 3:
        note = f"band {free[0]} of {len(colours)} as grey: --bands chooses others"
        return BandChoice(free[:1], note if len(free) > 1 else "")
    note = (
        f"bands {_listed(free[:3])} of {len(colours)} as red, green and blue: none is marked so, --bands chooses others"
    )
    return BandChoice(free[:3], note)


def _parse(path: str, names: list[str], colours: list[str], asked: str) -> tuple[int, ...]:
    parts = [part.strip().lower() for part in asked.split(",")]
    if len(parts) not in (1, 3):
        raise BadInputError(f"--bands takes three bands as red, green and blue, or one for grey, got '{asked}'")
    bands = []
    for part in parts:
        if part.isdecimal() and 1 <= int(part) <= len(names):
            bands.append(int(part))
        elif part and part in names:
            bands.append(names.index(part) + 1)
        elif part in colours:
            bands.append(colours.index(part) + 1)
        else:
            have = ", ".join(f"{number} {name}".rstrip() for number, name in enumerate(names, 1))
            raise BadInputError(f"'{path}' has no band '{part}': it has {have}")
    return tuple(bands)


def _listed(bands: Sequence[int]) -> str:
    return ", ".join(map(str, bands))
