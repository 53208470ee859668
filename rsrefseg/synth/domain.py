"""The two imaging domains, each defined by a ``Look``."""

from dataclasses import dataclass
from enum import StrEnum

RGB = tuple[float, float, float]
Range = tuple[float, float]


class Domain(StrEnum):
    """Landscape and sensor of a scene."""

    A = "A"
    B = "B"


@dataclass(frozen=True, slots=True)
class Look:
    """Ground, light and sensor of a domain; a scene draws uniformly from each range.

    Lengths are in pixels of a 256-pixel image and scale with the image; amplitudes are on the 0 to 255 scale.
    """

    ground: dict[str, tuple[RGB, ...]]  # base colours (0 to 255) of each material
    texture: Range  # contrast of the ground's noise, 1 is natural
    texture_scale: float  # share of the noise that is coarse, 0 to 1
    ripples: float  # amplitude of wind ripples (dunes, snow) on open ground
    tree_density: Range
    shadow: Range  # darkness of shadows, 0 none to 1 black
    sun_length: Range  # length of a shadow per unit of height
    haze: Range  # share of the light that is haze
    haze_rgb: RGB
    contrast: Range  # around mid-grey
    saturation: Range
    gamma: Range
    exposure: Range
    gain: RGB  # per-channel sensor gain (the colour cast)
    gain_jitter: float
    psf: Range  # blur, sigma in pixels
    noise: Range  # additive Gaussian noise
    speckle: Range  # multiplicative noise
    stripes: Range  # column offsets of a push-broom sensor


LOOKS = {
    # Temperate landscape, RGB aerial camera.
    Domain.A: Look(
        ground={
            "grass": ((96, 122, 70), (84, 112, 66), (110, 130, 78), (78, 104, 60)),
            "soil": ((140, 124, 98), (128, 116, 92), (150, 136, 108)),
            "concrete": ((172, 170, 164), (158, 158, 154), (182, 178, 168)),
            "asphalt": ((98, 100, 104), (86, 88, 92), (110, 110, 112)),
            "water": ((44, 74, 92), (52, 84, 88), (38, 64, 84)),
            "fallow": ((124, 130, 84), (112, 126, 78), (140, 136, 94), (98, 116, 70)),
            "tree": ((46, 72, 40), (54, 80, 44), (40, 64, 38)),
        },
        texture=(0.8, 1.2),
        texture_scale=0.45,
        ripples=0.0,
        tree_density=(0.3, 1.0),
        shadow=(0.40, 0.60),
        sun_length=(0.5, 1.1),
        haze=(0.02, 0.12),
        haze_rgb=(196, 206, 216),
        contrast=(0.95, 1.10),
        saturation=(0.9, 1.1),
        gamma=(0.95, 1.05),
        exposure=(0.92, 1.08),
        gain=(1.0, 1.0, 1.0),
        gain_jitter=0.03,
        psf=(0.35, 0.60),
        noise=(1.5, 3.5),
        speckle=(0.0, 0.01),
        stripes=(0.0, 0.0),
    ),
    # Dry landscape, coarser push-broom sensor: warm cast, less contrast, stripes, speckle.
    Domain.B: Look(
        ground={
            "grass": ((157, 152, 105), (145, 140, 96), (169, 162, 116), (137, 129, 88)),
            "soil": ((180, 150, 112), (166, 136, 102), (188, 164, 127)),
            "concrete": ((191, 182, 166), (177, 169, 154), (200, 191, 175)),
            "asphalt": ((124, 118, 112), (112, 106, 100), (135, 128, 119)),
            "water": ((60, 99, 104), (71, 108, 101), (52, 88, 98)),
            "fallow": ((164, 148, 101), (152, 140, 96), (178, 160, 114), (140, 130, 88)),
            "tree": ((75, 88, 53), (85, 94, 58), (68, 78, 50)),
        },
        texture=(0.9, 1.4),
        texture_scale=0.6,
        ripples=4.0,
        tree_density=(0.1, 0.6),
        shadow=(0.32, 0.52),
        sun_length=(0.4, 0.9),
        haze=(0.07, 0.19),
        haze_rgb=(211, 201, 183),
        contrast=(0.80, 0.96),
        saturation=(0.85, 1.05),
        gamma=(0.87, 0.98),
        exposure=(0.91, 1.07),
        gain=(1.04, 0.98, 0.87),
        gain_jitter=0.035,
        psf=(0.6, 0.95),
        noise=(2.3, 4.8),
        speckle=(0.015, 0.04),
        stripes=(0.8, 2.0),
    ),
}
