"""The preprocessing of images as data of a model: profiles by name, and a user's own values."""

from collections.abc import Mapping
from typing import Annotated, Any

from msgspec import Meta

from rsrefseg.engines.errors import BadInputError
from rsrefseg.engines.images.images import Resize
from rsrefseg.engines.records import Record

_Std = Annotated[float, Meta(gt=0)]
Channels = tuple[float, float, float]

IMAGENET_MEAN: Channels = (0.485, 0.456, 0.406)
IMAGENET_STD: Channels = (0.229, 0.224, 0.225)
_HALF: Channels = (0.5, 0.5, 0.5)


class Preprocessing(Record, frozen=True, kw_only=True):
    """How an image becomes the inputs of both image towers. The defaults are the published values.

    Attributes:
        image_size: side of the square to which images are resized before the graphs, px; None: that of SAM. Inside the
            graphs, each tower normalises this image and stretches it bilinearly to its own size.
        resize: filter of the resize before the graphs.
        keep_aspect: resize the long side to ``image_size`` and pad right and bottom with black, instead of stretching.
        siglip_mean, siglip_std, sam_mean, sam_std: normalisation per RGB channel, for values in 0..1.
    """

    image_size: Annotated[int, Meta(ge=1)] | None = None
    resize: Resize = "opencv"
    keep_aspect: bool = False
    siglip_mean: Channels = _HALF
    siglip_std: tuple[_Std, _Std, _Std] = _HALF
    sam_mean: Channels = IMAGENET_MEAN
    sam_std: tuple[_Std, _Std, _Std] = IMAGENET_STD

    @property
    def profile(self) -> str:
        """Name of the profile with these values, or ``own``."""
        return next((name for name, profile in PROFILES.items() if profile == self), OWN)


OWN = "own"
PUBLISHED, AERIAL_D, RSREFSEG2 = "published", "aerial-d", "rsrefseg2"
# ``aerial-d`` is that of the public checkpoints `luisml77/rsrefseg`, ``rsrefseg2`` that of RSRefSeg 2.
PROFILES: Mapping[str, Preprocessing] = {
    PUBLISHED: Preprocessing(),
    AERIAL_D: Preprocessing(
        image_size=480,
        resize="pillow",
        siglip_mean=IMAGENET_MEAN,
        siglip_std=IMAGENET_STD,
        sam_mean=(0.0, 0.0, 0.0),
        sam_std=(1.0, 1.0, 1.0),
    ),
    RSREFSEG2: Preprocessing(keep_aspect=True),
}


def choose_preprocessing(default: Preprocessing, profile: str | None, **values: Any) -> Preprocessing:
    """Return a profile, or ``default`` if ``profile`` is None, with the ``values`` that are not None.

    Raises:
        BadInputError: no profile has that name, or a value is out of range.
    """
    if profile is not None and profile not in PROFILES:
        raise BadInputError(f"unknown preprocessing profile '{profile}': choose one of {', '.join(PROFILES)}")
    base = default if profile is None else PROFILES[profile]
    return Preprocessing.from_dict(
        base.to_dict() | {name: value for name, value in values.items() if value is not None}
    )
