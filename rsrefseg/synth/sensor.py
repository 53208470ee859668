"""Converts radiance to a recorded image: haze, optics, detector, quantisation."""

import cv2
import numpy as np
from numpy.typing import NDArray

from .canvas import F32
from .domain import Look


def expose(radiance: F32, look: Look, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Record radiance (size, size, 3) float32 as uint8 RGB through a look's atmosphere and sensor."""
    size = radiance.shape[0]
    haze = rng.uniform(*look.haze)
    contrast, saturation = rng.uniform(*look.contrast), rng.uniform(*look.saturation)
    gamma, exposure = rng.uniform(*look.gamma), rng.uniform(*look.exposure)
    gain = np.array(look.gain) * rng.uniform(1 - look.gain_jitter, 1 + look.gain_jitter, 3)
    sigma = rng.uniform(*look.psf) * size / 256

    image = cv2.GaussianBlur(radiance, (0, 0), sigma)
    grey = image.mean(axis=2, keepdims=True)
    image = grey + (image - grey) * np.float32(saturation)
    image = image * np.float32(1 - haze) + np.array(look.haze_rgb, np.float32) * np.float32(haze)
    image = (image - 128) * np.float32(contrast) + 128
    image = image * (gain * exposure).astype(np.float32)
    image = 255 * np.power(np.clip(image / 255, 0, 1), np.float32(1 / gamma))
    image = image.astype(np.float32)

    speckle = rng.uniform(*look.speckle)
    if speckle > 0:
        image *= 1 + np.float32(speckle) * rng.standard_normal((size, size, 1), np.float32)
    stripes = rng.uniform(*look.stripes)
    if stripes > 0:
        image += np.float32(stripes) * rng.standard_normal((1, size, 1), np.float32)
    image += np.float32(rng.uniform(*look.noise)) * rng.standard_normal((size, size, 3), np.float32)
    return np.asarray(np.clip(np.round(image), 0, 255), np.uint8)
