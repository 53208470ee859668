"""The inputs and outputs of the five graphs: names, dtypes and shapes.

Exporter, runtimes, TensorRT profiles and parity inputs read these contracts; none repeats a name or a shape.
"""

import math
from collections.abc import Mapping
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, Literal

from msgspec import Meta, Struct

from ..errors import BadInputError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

PositiveInt = Annotated[int, Meta(ge=1)]
DType = Literal["uint8", "int64", "bool", "float16", "float32"]


class Stage(str, Enum):  # noqa: UP042 (StrEnum needs Python 3.11)
    """The five graphs, in the order they run."""

    SIGLIP_VISION = "siglip_vision"
    SIGLIP_TEXT = "siglip_text"
    ATTN_PROMPTER = "attn_prompter"
    SAM_ENCODER = "sam_encoder"
    SAM_DECODER = "sam_decoder"

    def __str__(self) -> str:
        return self.value


class Dim(Struct, frozen=True, forbid_unknown_fields=True):
    """A dimension whose size may vary between calls: its name, bounds and the size to optimise for."""

    name: str
    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ValueError(f"dimension name {self.name!r} is not an identifier")
        if not 1 <= self.min <= self.opt <= self.max:
            raise ValueError(f"dimension '{self.name}' needs 1 <= min <= opt <= max, got {self}")

    def __str__(self) -> str:
        return f"{self.name}={self.min}..{self.max}"


class TensorSpec(Struct, frozen=True):
    """One named tensor of a graph. ``dtype`` is a numpy dtype name."""

    name: str
    dtype: DType
    shape: tuple[PositiveInt | Dim, ...]

    @property
    def shape_text(self) -> str:
        """The shape as text, e.g. ``[phrases=1..32, 64]``."""
        return f"[{', '.join(str(size) for size in self.shape)}]"

    @property
    def dims(self) -> tuple[Dim, ...]:
        """The varying dimensions, in axis order."""
        return tuple(size for size in self.shape if isinstance(size, Dim))

    def sized(self, **sizes: int) -> tuple[int, ...]:
        """Return the shape with each varying size from ``sizes``, or its ``opt`` if not given."""
        return tuple(sizes.get(size.name, size.opt) if isinstance(size, Dim) else size for size in self.shape)

    def check(self, array: "npt.NDArray[Any] | np.generic") -> None:
        """Check the dtype and shape of an array.

        Raises:
            BadInputError: they do not fit; the message names the tensor, what is expected and what was passed.
        """
        fits = len(array.shape) == len(self.shape) and all(
            want.min <= size <= want.max if isinstance(want, Dim) else size == want
            for size, want in zip(array.shape, self.shape, strict=True)
        )
        if str(array.dtype) != self.dtype or not fits:
            found = f"{array.dtype} {list(array.shape)}"
            raise BadInputError(f"tensor '{self.name}' must be {self.dtype} {self.shape_text}, got {found}")


class StageContract(Struct, frozen=True):
    """Inputs and outputs of one graph.

    Attributes:
        stage: the stage that the graph computes.
        inputs: its inputs, in the graph's order.
        outputs: its outputs, in the graph's order.
    """

    stage: Stage
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def dims(self) -> tuple[Dim, ...]:
        """The varying dimensions of the graph, each once."""
        return tuple(dict.fromkeys(dim for spec in self.inputs + self.outputs for dim in spec.dims))

    def input(self, name: str) -> TensorSpec:
        """Return the input called ``name``; raise ``KeyError`` if there is none."""
        return {spec.name: spec for spec in self.inputs}[name]

    def check_inputs(self, feeds: Mapping[str, "npt.NDArray[Any]"]) -> None:
        """Check that no tensor is missing, unknown or of a wrong shape, and that each varying dimension has one size.

        Raises:
            BadInputError: a check failed; the message names stage and tensor.
        """
        self._check("input", self.inputs, feeds)

    def check_outputs(self, results: Mapping[str, "npt.NDArray[Any]"]) -> None:
        """Check outputs of the graph like ``check_inputs``."""
        self._check("output", self.outputs, results)

    def _check(self, kind: str, specs: tuple[TensorSpec, ...], arrays: Mapping[str, "npt.NDArray[Any]"]) -> None:
        names = [spec.name for spec in specs]
        if missing := [name for name in names if name not in arrays]:
            raise BadInputError(f"stage '{self.stage}' lacks its {kind} {', '.join(missing)}")
        if unknown := [name for name in arrays if name not in names]:
            raise BadInputError(f"stage '{self.stage}' has no {kind} {', '.join(unknown)}; it has {', '.join(names)}")
        sizes: dict[str, int] = {}
        for spec in specs:
            array = arrays[spec.name]
            try:
                spec.check(array)
            except BadInputError as error:
                raise BadInputError(f"stage '{self.stage}': {error}") from None
            for want, size in zip(spec.shape, array.shape, strict=True):
                if isinstance(want, Dim) and sizes.setdefault(want.name, size) != size:
                    was = sizes[want.name]
                    raise BadInputError(
                        f"stage '{self.stage}': '{want.name}' is {was} and, in {kind} '{spec.name}', {size}"
                    )


class Geometry(Struct, frozen=True, forbid_unknown_fields=True):
    """The sizes that follow from a preset: for -b and -l 1024, 729, 1152, 64, 49, 256, 64 and 256.

    Attributes:
        image_size: side of the square input of both image graphs, px.
        clip_tokens: SigLIP patch tokens, a square number (27 x 27 = 729).
        clip_channels: width of SigLIP's joint space (1152).
        text_length: number of tokens of a padded phrase (64).
        prompt_tokens: number of sparse prompts per phrase, a square number (7 x 7 = 49).
        prompt_channels: width of SAM's prompts and image embedding (256).
        embedding_grid: side of SAM's image embedding (64).
        mask_grid: side of the mask logits and of the dense prompt (256).
        high_resolution: whether SAM's decoder also takes two maps of 4 and 2 times the embedding's grid, as SAM 2 does.
    """

    image_size: PositiveInt
    clip_tokens: PositiveInt
    clip_channels: PositiveInt
    text_length: PositiveInt
    prompt_tokens: PositiveInt
    prompt_channels: PositiveInt
    embedding_grid: PositiveInt
    mask_grid: PositiveInt
    high_resolution: bool = False

    def __post_init__(self) -> None:
        for name in ("clip_tokens", "prompt_tokens"):
            if math.isqrt(size := getattr(self, name)) ** 2 != size:
                raise ValueError(f"geometry: {name} must be a square number, got {size}")


PHRASES = Dim("phrases", 1, 1, 32)
IMAGES = Dim("images", 1, 1, 4)


def stage_contracts(geometry: Geometry, phrases: Dim = PHRASES, images: Dim = IMAGES) -> dict[Stage, StageContract]:
    """Return the contracts of all five graphs, in the order they run.

    Prompter and decoder process one image and many phrases; a batch of images loops over them.
    """
    g = geometry
    image = TensorSpec("image", "uint8", (images, 3, g.image_size, g.image_size))
    input_ids = TensorSpec("input_ids", "int64", (phrases, g.text_length))
    token_mask = TensorSpec("token_mask", "bool", (phrases, g.text_length))
    word_features = TensorSpec("word_features", "float32", (phrases, g.text_length, g.clip_channels))
    sentence_feature = TensorSpec("sentence_feature", "float32", (phrases, g.clip_channels))
    sparse_prompts = TensorSpec("sparse_prompts", "float32", (phrases, g.prompt_tokens, g.prompt_channels))
    mask_prompt = TensorSpec("mask_prompt", "float32", (phrases, 1, g.mask_grid, g.mask_grid))
    mask_logits = TensorSpec("mask_logits", "float32", (phrases, 1, g.mask_grid, g.mask_grid))

    def clip_features(count: int | Dim) -> TensorSpec:
        return TensorSpec("clip_features", "float32", (count, g.clip_tokens, g.clip_channels))

    def image_maps(count: int | Dim) -> tuple[TensorSpec, ...]:
        sizes = (
            {"image_embedding": 1, "high_res_1": 2, "high_res_0": 4} if g.high_resolution else {"image_embedding": 1}
        )
        # Each map has the channels that SAM's decoder has at its resolution.
        return tuple(
            TensorSpec(
                name,
                "float32",
                (
                    count,
                    g.prompt_channels // (1 if factor == 1 else 2 * factor),
                    g.embedding_grid * factor,
                    g.embedding_grid * factor,
                ),
            )
            for name, factor in sizes.items()
        )

    contracts = (
        StageContract(Stage.SIGLIP_VISION, (image,), (clip_features(images),)),
        StageContract(Stage.SIGLIP_TEXT, (input_ids, token_mask), (word_features, sentence_feature)),
        StageContract(
            Stage.ATTN_PROMPTER,
            (clip_features(1), word_features, sentence_feature, token_mask),
            (sparse_prompts, mask_prompt),
        ),
        StageContract(Stage.SAM_ENCODER, (image,), image_maps(images)),
        StageContract(Stage.SAM_DECODER, (*image_maps(1), sparse_prompts, mask_prompt), (mask_logits,)),
    )
    return {contract.stage: contract for contract in contracts}
