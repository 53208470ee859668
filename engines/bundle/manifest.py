"""``bundle.json`` as frozen records, with their reader and writer.

The file contains its own digest, computed with zeros in the digest's place, so that a truncated or damaged file is
rejected. The digest is not a signature: an attacker can compute it as well.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from ..errors import BundleError
from ..images.images import Resize
from ..presence import Presence
from ..text import Padding
from .contracts import Geometry, PositiveInt, Stage, StageContract

SCHEMA_VERSION = 2
MANIFEST_NAME = "bundle.json"
# Reported by export, infer, eval, parity and bench, as is NOT_JUDGED_NOTE.
RANDOM_WEIGHTS_NOTE = "the weights are random: sizes and times hold, masks and scores mean nothing"
Precision = Literal["fp32", "fp16", "int8", "fp8"]
QUANTIZED = ("int8", "fp8")
NOT_JUDGED_NOTE = "the bundle is quantised and its masks were not judged: export it with --data, or run parity --data"
_DIGEST, _NO_DIGEST = "digest", "0" * 64
EXPORT_AGAIN = "copy the bundle again, or export it again with `rsrefseg export`"

_Record = TypeVar("_Record")
_Count = Annotated[int, Meta(ge=0)]
_Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
# A file name in the bundle's folder: no path, no hidden file, no character that a system treats specially.
_PlainName = Annotated[str, Meta(pattern=r"^(?!bundle\.json\Z)[^./\\:\x00][^/\\:\x00]*\Z")]
_Channels = tuple[float, float, float]


class FileRecord(Struct, frozen=True):
    """A file of the bundle: plain name beside ``bundle.json``, SHA-256 in hex, size in bytes."""

    name: _PlainName
    sha256: _Sha256
    size_bytes: _Count


class KeptFp32(Struct, frozen=True):
    """A part of a half-precision graph that stays float32: its module in the stage (``.`` for all) and the reason."""

    module: str
    reason: str


class Quantization(Struct, frozen=True, kw_only=True):
    """How the layers of a graph are quantised: products of activations with a constant matrix.

    Attributes:
        kind: ``static``, with scales of activations in the graph, or ``dynamic``, with scales taken from each input.
        layers: number of quantised layers.
        kept: layers that stay in floating point, with reasons.
        relative_l2: largest error of an output on the reference samples; ``None`` without them.
    """

    kind: Literal["static", "dynamic"]
    layers: _Count
    kept: tuple[KeptFp32, ...] = ()
    relative_l2: float | None = None


class MaskJudgement(Struct, frozen=True, kw_only=True):
    """How the masks of a quantised bundle compare with those of the original, on ONNX Runtime's CPU provider.

    Attributes:
        data: name of the data set's folder.
        split: its split. Other images of the same split calibrated static scales.
        samples: number of samples.
        giou_before: gIoU of the original.
        giou_after: gIoU of the quantised bundle.
        iou_mean: mean IoU of the masks of both.
        iou_worst: smallest IoU of the masks of both.
        max_giou_drop: limit for ``giou_before - giou_after``.
        min_iou: limit for ``iou_worst``; ``None`` for no limit.
        min_iou_mean: limit for ``iou_mean``.
        evaluations: number of times the samples were predicted with a quantised bundle.
    """

    data: str
    split: str
    samples: PositiveInt
    giou_before: float
    giou_after: float
    iou_mean: float
    iou_worst: float
    max_giou_drop: float
    min_iou: float | None
    min_iou_mean: float
    evaluations: PositiveInt

    @property
    def holds(self) -> bool:
        """Whether the masks are within the limits."""
        drop = self.giou_before - self.giou_after
        worst_holds = self.min_iou is None or self.iou_worst >= self.min_iou
        return drop <= self.max_giou_drop and self.iou_mean >= self.min_iou_mean and worst_holds

    def __str__(self) -> str:
        return (
            f"gIoU {self.giou_before:.4f} -> {self.giou_after:.4f}, mask IoU {self.iou_mean:.4f} on average and"
            f" {self.iou_worst:.3f} at worst, {self.samples} samples of {self.split}"
        )


class AttentionRecord(Struct, frozen=True):
    """The form of SAM's attention in a graph, and the reason for it.

    Attributes:
        windowed: form of the windowed blocks.
        whole: form of the global blocks; ``global`` in JSON.
        query_parts: number of parts into which global blocks split their queries.
        target: the runtime that the form is chosen for.
        reason: the measurement or the option that decided the form.
        mlp_parts: number of parts into which MLPs split their tokens; older bundles lack the field.
        fused: whether every attention is one ``Attention`` node and no product broadcasts its batch, so that CUDA
            graphs can replay the stage; older bundles lack the field.
    """

    windowed: str
    whole: str = msgspec.field(name="global")
    query_parts: int
    target: str
    reason: str
    mlp_parts: int = 1
    fused: bool = False

    def __str__(self) -> str:
        parts = f" in {self.query_parts} parts" if self.query_parts > 1 else ""
        mlp = f", MLP in {self.mlp_parts} parts" if self.mlp_parts > 1 else ""
        fused = ", one node each" if self.fused else ""
        return f"windowed {self.windowed}, global {self.whole}{parts}{mlp}{fused}, for {self.target}"


class StageRecord(Struct, frozen=True):
    """One graph of the bundle.

    Attributes:
        contract: inputs and outputs of the graph.
        graph: the ONNX file.
        data: files of external weights, beside the graph.
        opset: ONNX operator set of the default domain.
        precision: precision of weights and matrix products.
        attention: form of attention in SAM's image encoder; ``None`` for the other graphs.
        flops: floating-point operations of one run at the contract's ``opt`` sizes, 2 per multiply-add.
        parameters: number of weights.
        weight_bytes: size of all constants of the graph as stored, which every run reads, bytes.
        precision_plan: parts of an ``fp16`` graph that stay float32, with reasons.
        fp32_sums: whether an ``fp16`` graph sums its products in float32.
        quantization: how its layers are quantised; ``None`` in a bundle that is not.
    """

    contract: StageContract
    graph: FileRecord
    data: tuple[FileRecord, ...]
    opset: PositiveInt
    precision: Precision
    attention: AttentionRecord | None
    flops: _Count
    parameters: _Count
    weight_bytes: _Count
    precision_plan: tuple[KeptFp32, ...] = ()
    fp32_sums: bool = False
    quantization: Quantization | None = None

    def __post_init__(self) -> None:
        quantized = self.quantization is not None and self.quantization.layers > 0
        if quantized != (self.precision in QUANTIZED):
            raise ValueError(f"stage '{self.contract.stage}' is {self.precision} and its quantization says otherwise")
        if self.precision_plan and self.precision == "fp32":
            raise ValueError(f"stage '{self.contract.stage}' is float32 and has a precision plan for half precision")

    @property
    def is_dynamic(self) -> bool:
        """Whether INT8 scales are taken from each input, by operators that only CPUs have."""
        return self.quantization is not None and self.quantization.layers > 0 and self.quantization.kind == "dynamic"


class Preprocessing(Struct, frozen=True):
    """The preprocessing of images: the host resizes, the image graphs do the rest.

    Means and standard deviations are per RGB channel, for values in 0..1. Only the first resize, to ``image_size``,
    runs on the host, with the filter ``resize``; if ``keep_aspect``, it pads instead of stretching. Those inside the
    graphs are bilinear with half-pixel centres, without antialiasing, to ``siglip_size`` and ``sam_size`` (None, as in
    older bundles: none).
    """

    image_size: int
    siglip_size: int
    siglip_mean: _Channels
    siglip_std: _Channels
    sam_mean: _Channels
    sam_std: _Channels
    sam_size: int | None = None
    resize: Resize = "opencv"
    profile: str = "published"
    keep_aspect: bool = False


class TextPolicy(Struct, frozen=True):
    """The arguments of ``Tokenizer`` for a bundle."""

    padding: Padding
    length: int
    pad_id: int


class Provenance(Struct, frozen=True):
    """The origin of the weights.

    Attributes:
        checkpoint_sha256: digest of the merged checkpoint, if there is one.
        random_weights: whether the encoders were never trained, for benchmarks only.
        merge_proof: measurements of the merge, as recorded in the checkpoint.
        versions: package versions of the export.
    """

    checkpoint_sha256: str | None
    random_weights: bool
    merge_proof: dict[str, Any]
    versions: dict[str, str]

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes that every user of the bundle must see, one line each."""
        return (RANDOM_WEIGHTS_NOTE,) if self.random_weights else ()


class Manifest(Struct, frozen=True, kw_only=True):
    """The content of ``bundle.json``.

    ``reference`` holds the parity samples, which random weights may lack; ``presence`` is the calibration of presence
    scores, if the run has one. ``judgement`` compares the masks of a quantised bundle with those of its original.
    """

    schema_version: int = SCHEMA_VERSION
    preset: str
    geometry: Geometry
    stages: dict[Stage, StageRecord]
    preprocessing: Preprocessing
    text: TextPolicy
    tokenizer: FileRecord
    reference: FileRecord | None
    provenance: Provenance
    presence: Presence | None = None
    judgement: MaskJudgement | None = None

    def __post_init__(self) -> None:
        if missing := [stage for stage in Stage if stage not in self.stages]:
            raise ValueError(f"the stages {', '.join(missing)} are missing")
        if wrong := [stage for stage, record in self.stages.items() if record.contract.stage != stage]:
            raise ValueError(f"stage '{wrong[0]}' has another stage's contract")
        names = [record.name for record in self.files]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"the file '{twice[0]}' is listed twice")
        sizes = {"image_size": self.preprocessing.image_size, "text_length": self.text.length}
        for name, size in sizes.items():
            if size != getattr(self.geometry, name):
                raise ValueError(f"{name} is {getattr(self.geometry, name)} in the geometry and {size} elsewhere")

    def note_for(self, *targets: str) -> str | None:
        """Return a note if the graphs were exported for none of the targets; it recommends the first."""
        attention = self.stages[Stage.SAM_ENCODER].attention
        if attention is None or attention.target in targets:
            return None
        hint = f"export it again with --target {targets[0]}"
        return f"the bundle was exported for {attention.target}, so its attention is slower here: {hint}"

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes that every user of the bundle must see, one line each."""
        quantized = any(record.precision in QUANTIZED for record in self.stages.values())
        return (*self.provenance.notes, *([NOT_JUDGED_NOTE] if quantized and self.judgement is None else []))

    @property
    def files(self) -> tuple[FileRecord, ...]:
        """All files of the bundle except ``bundle.json``."""
        graphs = [record for stage in self.stages.values() for record in (stage.graph, *stage.data)]
        return (*graphs, self.tokenizer, *([self.reference] if self.reference else []))


def read_record(value: Any, kind: type[_Record], file: str = MANIFEST_NAME, path: str = "$") -> _Record:
    """Convert the JSON value at ``path`` of ``file`` to a record of type ``kind``.

    Raises:
        BundleError: a field is missing, of another type or out of range; the message names file and path.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        problem, _, found = str(error).partition(" - at ")
        raise BundleError(f"{file}: {problem} - at {found.replace('`$', f'`{path}') or f'`{path}`'}") from error


def bytes_with_digest(document: Mapping[str, Any]) -> bytes:
    """Serialise the JSON values of ``bundle.json``, including the file's digest."""
    text = json.dumps({**document, _DIGEST: _NO_DIGEST}, indent=2) + "\n"
    head, _, tail = text.rpartition(_NO_DIGEST)
    return (head + hashlib.sha256(text.encode()).hexdigest() + tail).encode()


def manifest_bytes(manifest: Manifest) -> bytes:
    """Serialise a manifest to the bytes of ``bundle.json``."""
    return bytes_with_digest(msgspec.to_builtins(manifest, str_keys=True))


def read_manifest(data: bytes) -> tuple[Manifest, str]:
    """Read a manifest and its digest from the bytes of ``bundle.json``.

    Raises:
        BundleError: the bytes are not JSON, of another schema version, damaged, or not a manifest.
    """
    try:
        value = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise BundleError(f"bundle.json is not readable JSON ({error}): {EXPORT_AGAIN}") from error
    found = value.get("schema_version") if isinstance(value, dict) else None
    if type(found) is not int or found != SCHEMA_VERSION:
        raise BundleError(
            f"bundle.json has schema version {found!r}, this release reads {SCHEMA_VERSION}:"
            " export the bundle again, or install the release that wrote it"
        )
    digest = read_record(value.get(_DIGEST), _Sha256, path=f"$.{_DIGEST}")
    head, _, tail = data.rpartition(digest.encode())
    if hashlib.sha256(head + _NO_DIGEST.encode() + tail).hexdigest() != digest:
        raise BundleError(f"bundle.json was changed after export: {EXPORT_AGAIN}")
    records = read_record(value.get("stages"), dict[Stage, Any], path="$.stages")
    # Stage by stage, so that the path in an error names the stage.
    stages = {s: read_record(records[s], StageRecord, path=f"$.stages.{s}") for s in Stage if s in records}
    return read_record({**value, "stages": stages}, Manifest), digest
