"""``bundle.json``: what a bundle says about itself, as frozen dataclasses, and the reading and checking of it.

The file holds its own digest, taken with zeros in the digest's place, so that a change of any byte of it is seen too.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar, cast, get_args

from ..errors import BundleError
from ..text import Padding
from .contracts import Geometry, Stage, StageContract

SCHEMA_VERSION = 2
MANIFEST_NAME = "bundle.json"
# Said by whatever runs such a bundle.
RANDOM_WEIGHTS_NOTE = "the weights are random: sizes and times hold, masks and scores mean nothing"
_DIGEST, _NO_DIGEST = "digest", "0" * 64
PRECISIONS = ("fp32", "fp16")

_T = TypeVar("_T")
_HEX_DIGITS = frozenset("0123456789abcdef")


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A file of the bundle: plain name beside ``bundle.json``, SHA-256 in hex, size in bytes."""

    name: str
    sha256: str
    size_bytes: int

    def __post_init__(self) -> None:
        # A name is a key into this folder and nowhere else: no path, nothing hidden, nothing a system takes specially.
        if not self.name or self.name.startswith(".") or any(mark in self.name for mark in "/\\:\0"):
            raise BundleError(
                f"bundle.json names the file {self.name!r}: only plain names inside the bundle are allowed"
            )
        if self.name == MANIFEST_NAME:
            raise BundleError(f"bundle.json lists itself as the file {self.name!r}")
        if len(self.sha256) != 64 or not set(self.sha256) <= _HEX_DIGITS:
            raise BundleError(f"bundle.json: the digest of '{self.name}' is no SHA-256 in lower-case hex")
        if self.size_bytes < 0:
            raise BundleError(f"bundle.json: the size of '{self.name}' is negative")

    @classmethod
    def from_json(cls, value: Any, where: str) -> "FileRecord":
        """Read what ``asdict`` gave."""
        return cls(
            _get(value, "name", str, where), _get(value, "sha256", str, where), _get(value, "size_bytes", int, where)
        )


@dataclass(frozen=True, slots=True)
class KeptFp32:
    """Part of a half-precision graph that stays float32: module name within the stage (``.`` is the stage) and why."""

    module: str
    reason: str

    @classmethod
    def from_json(cls, value: Any, where: str) -> "KeptFp32":
        """Read what ``asdict`` gave."""
        return cls(_get(value, "module", str, where), _get(value, "reason", str, where))


@dataclass(frozen=True, slots=True)
class AttentionRecord:
    """How SAM's attention was written into a graph, and why so.

    Attributes:
        windowed: form of the windowed blocks.
        whole: form of the global blocks; ``global`` in JSON.
        query_parts: in how many parts the queries of global blocks are taken.
        target: the runtime it was chosen for.
        reason: by which measurement, when and on what class of machine; or who asked for it.
        mlp_parts: in how many parts tokens go through MLPs; bundles from before there were any lack the field.
    """

    windowed: str
    whole: str
    query_parts: int
    target: str
    reason: str
    mlp_parts: int = 1

    def __str__(self) -> str:
        parts = f" in {self.query_parts} parts" if self.query_parts > 1 else ""
        mlp = f", MLP in {self.mlp_parts} parts" if self.mlp_parts > 1 else ""
        return f"windowed {self.windowed}, global {self.whole}{parts}{mlp}, for {self.target}"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "windowed": self.windowed,
            "global": self.whole,
            "query_parts": self.query_parts,
            "target": self.target,
            "reason": self.reason,
            "mlp_parts": self.mlp_parts,
        }

    @classmethod
    def from_json(cls, value: Any, where: str) -> "AttentionRecord":
        """Inverse of ``to_json``."""
        return cls(
            _get(value, "windowed", str, where),
            _get(value, "global", str, where),
            _get(value, "query_parts", int, where),
            _get(value, "target", str, where),
            _get(value, "reason", str, where),
            _get({"mlp_parts": 1} | value, "mlp_parts", int, where),
        )


@dataclass(frozen=True, slots=True)
class StageRecord:
    """One graph of the bundle.

    Attributes:
        contract: what it takes and gives.
        graph: the ONNX file.
        data: files of external weights, which lie beside the graph.
        opset: ONNX operator set of the default domain.
        precision: one of ``PRECISIONS``, of its weights and matrix products.
        attention: of SAM's image encoder, ``None`` for the other graphs.
        flops: floating-point operations of one run at the contract's ``opt`` sizes, 2 per multiply-add.
        parameters: number of weights.
        weight_bytes: bytes of everything the graph holds as a constant, as stored: what a run has to read.
        precision_plan: what stays float32 in a graph of ``fp16``, and why.
    """

    contract: StageContract
    graph: FileRecord
    data: tuple[FileRecord, ...]
    opset: int
    precision: str
    attention: AttentionRecord | None
    flops: int
    parameters: int
    weight_bytes: int
    precision_plan: tuple[KeptFp32, ...] = ()

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            known = ", ".join(PRECISIONS)
            raise BundleError(f"stage '{self.contract.stage}' has precision {self.precision!r}; known are {known}")
        if self.precision_plan and self.precision == "fp32":
            raise BundleError(f"stage '{self.contract.stage}' is float32 and has a precision plan for half precision")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "contract": self.contract.to_json(),
            "graph": asdict(self.graph),
            "data": [asdict(record) for record in self.data],
            "opset": self.opset,
            "precision": self.precision,
            "attention": self.attention.to_json() if self.attention else None,
            "flops": self.flops,
            "parameters": self.parameters,
            "weight_bytes": self.weight_bytes,
            "precision_plan": [asdict(part) for part in self.precision_plan],
        }

    @classmethod
    def from_json(cls, value: Any, where: str) -> "StageRecord":
        """Inverse of ``to_json``.

        Raises:
            BundleError: naming the field that is missing or of another type.
        """
        attention = _optional(value, "attention", dict, where)
        return cls(
            contract=StageContract.from_json(_get(value, "contract", dict, where)),
            graph=FileRecord.from_json(_get(value, "graph", dict, where), f"{where}.graph"),
            data=tuple(FileRecord.from_json(item, f"{where}.data") for item in _get(value, "data", list, where)),
            opset=_get(value, "opset", int, where),
            precision=_get(value, "precision", str, where),
            attention=None if attention is None else AttentionRecord.from_json(attention, f"{where}.attention"),
            flops=_get(value, "flops", int, where),
            parameters=_get(value, "parameters", int, where),
            weight_bytes=_get(value, "weight_bytes", int, where),
            precision_plan=tuple(
                KeptFp32.from_json(item, f"{where}.precision_plan")
                for item in _get(value, "precision_plan", list, where)
            ),
        )


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """What the image graphs do to their uint8 input. For the reader: it happens inside the graphs, not on the host.

    Means and standard deviations are per RGB channel, of values in 0..1. Both resizes are bilinear with half-pixel
    centres, without antialiasing and without keeping the aspect ratio; only the first, to ``image_size``, is done on
    the host.
    """

    image_size: int
    siglip_size: int
    siglip_mean: tuple[float, float, float]
    siglip_std: tuple[float, float, float]
    sam_mean: tuple[float, float, float]
    sam_std: tuple[float, float, float]

    @classmethod
    def from_json(cls, value: Any, where: str) -> "Preprocessing":
        """Read what ``asdict`` gave."""
        channels = {
            name: _channels(value, name, where) for name in ("siglip_mean", "siglip_std", "sam_mean", "sam_std")
        }
        return cls(_get(value, "image_size", int, where), _get(value, "siglip_size", int, where), **channels)


@dataclass(frozen=True, slots=True)
class TextPolicy:
    """How phrases become tokens: the arguments of ``Tokenizer``."""

    padding: Padding
    length: int
    pad_id: int

    @classmethod
    def from_json(cls, value: Any, where: str) -> "TextPolicy":
        """Read what ``asdict`` gave."""
        padding = _get(value, "padding", str, where)
        if padding not in get_args(Padding):
            raise BundleError(f"bundle.json: unknown text padding {padding!r}")
        return cls(cast(Padding, padding), _get(value, "length", int, where), _get(value, "pad_id", int, where))


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where the weights come from.

    Attributes:
        checkpoint_sha256: digest of the merged checkpoint, where there is one.
        random_weights: whether the towers were never trained (measuring only).
        merge_proof: what the merge measured, as it stands in the checkpoint.
        versions: package versions the export ran with.
    """

    checkpoint_sha256: str | None
    random_weights: bool
    merge_proof: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def notes(self) -> tuple[str, ...]:
        """What everybody who uses the bundle must be told, one line each."""
        return (RANDOM_WEIGHTS_NOTE,) if self.random_weights else ()

    @classmethod
    def from_json(cls, value: Any, where: str) -> "Provenance":
        """Read what ``asdict`` gave."""
        return cls(
            _optional(value, "checkpoint_sha256", str, where),
            _get(value, "random_weights", bool, where),
            _get(value, "merge_proof", dict, where),
            {name: str(version) for name, version in _get(value, "versions", dict, where).items()},
        )


@dataclass(frozen=True, slots=True)
class Manifest:
    """All of ``bundle.json``. ``reference`` is the file of parity samples; a bundle of random weights may lack it."""

    preset: str
    geometry: Geometry
    stages: Mapping[Stage, StageRecord]
    preprocessing: Preprocessing
    text: TextPolicy
    tokenizer: FileRecord
    reference: FileRecord | None
    provenance: Provenance
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        if missing := [stage for stage in Stage if stage not in self.stages]:
            raise BundleError(f"bundle.json lacks the stages {', '.join(missing)}")
        if wrong := [stage for stage, record in self.stages.items() if record.contract.stage != stage]:
            raise BundleError(f"bundle.json: the contract of stage '{wrong[0]}' is another stage's")
        names = [record.name for record in self.files]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise BundleError(f"bundle.json lists the file '{twice[0]}' twice")
        sizes = {"image_size": self.preprocessing.image_size, "text_length": self.text.length}
        for name, size in sizes.items():
            if size != getattr(self.geometry, name):
                raise BundleError(f"bundle.json gives {name} as {getattr(self.geometry, name)} and as {size}")

    @property
    def files(self) -> tuple[FileRecord, ...]:
        """Every file of the bundle but ``bundle.json`` itself."""
        graphs = [record for stage in self.stages.values() for record in (stage.graph, *stage.data)]
        return (*graphs, self.tokenizer, *([self.reference] if self.reference else []))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "schema_version": self.schema_version,
            "preset": self.preset,
            "geometry": self.geometry.to_json(),
            "stages": {str(stage): record.to_json() for stage, record in self.stages.items()},
            "preprocessing": asdict(self.preprocessing),
            "text": asdict(self.text),
            "tokenizer": asdict(self.tokenizer),
            "reference": asdict(self.reference) if self.reference else None,
            "provenance": asdict(self.provenance),
        }

    @classmethod
    def from_json(cls, value: Any) -> "Manifest":
        """Inverse of ``to_json``.

        Raises:
            BundleError: another schema version, or a field that is missing, of another type or at odds with the rest.
        """
        _check_version(value)
        stages = _get(value, "stages", dict, "bundle.json")
        if unknown := [name for name in stages if name not in list(Stage)]:
            raise BundleError(f"bundle.json has an unknown stage {unknown[0]!r}")
        reference = _optional(value, "reference", dict, "bundle.json")
        return cls(
            preset=_get(value, "preset", str, "bundle.json"),
            geometry=Geometry.from_json(_get(value, "geometry", dict, "bundle.json")),
            stages={
                stage: StageRecord.from_json(stages[stage], f"bundle.json: stages.{stage}")
                for stage in Stage
                if stage in stages
            },
            preprocessing=Preprocessing.from_json(_get(value, "preprocessing", dict, "bundle.json"), "preprocessing"),
            text=TextPolicy.from_json(_get(value, "text", dict, "bundle.json"), "text"),
            tokenizer=FileRecord.from_json(_get(value, "tokenizer", dict, "bundle.json"), "tokenizer"),
            reference=None if reference is None else FileRecord.from_json(reference, "reference"),
            provenance=Provenance.from_json(_get(value, "provenance", dict, "bundle.json"), "provenance"),
        )


def seal(document: Mapping[str, Any]) -> bytes:
    """The bytes of ``bundle.json`` for ``to_json``'s values, its own digest included."""
    text = json.dumps({**document, _DIGEST: _NO_DIGEST}, indent=2) + "\n"
    head, _, tail = text.rpartition(_NO_DIGEST)
    return (head + hashlib.sha256(text.encode()).hexdigest() + tail).encode()


def unseal(data: bytes) -> tuple[Manifest, str]:
    """The manifest in the bytes of ``bundle.json``, and its digest.

    Raises:
        ValueError, RecursionError: the bytes are no JSON.
        BundleError: they are another schema's, changed, or no manifest.
    """
    value = json.loads(data.decode("utf-8"))
    _check_version(value)
    digest = _get(value, _DIGEST, str, MANIFEST_NAME)
    head, _, tail = data.rpartition(digest.encode())
    if hashlib.sha256(head + _NO_DIGEST.encode() + tail).hexdigest() != digest:
        raise BundleError("bundle.json was changed after export: export the bundle again")
    return Manifest.from_json(value), digest


def _check_version(value: Any) -> None:
    found = value.get("schema_version") if isinstance(value, dict) else None
    if type(found) is not int or found != SCHEMA_VERSION:
        raise BundleError(
            f"bundle.json has schema version {found!r}, this release reads {SCHEMA_VERSION}:"
            " export the bundle again, or install the release that wrote it"
        )


def _get(value: Any, name: str, kind: type[_T], where: str) -> _T:
    """A field of a JSON object, of exactly that type (JSON knows no number that is also a truth value)."""
    if not isinstance(value, dict) or name not in value:
        raise BundleError(f"{where} lacks the field '{name}'")
    found = value[name]
    if type(found) is not kind:
        raise BundleError(f"{where}: the field '{name}' must be {kind.__name__}, got {found!r:.60}")
    return found


def _optional(value: Any, name: str, kind: type[_T], where: str) -> _T | None:
    if isinstance(value, dict) and name in value and value[name] is None:
        return None
    return _get(value, name, kind, where)


def _channels(value: Any, name: str, where: str) -> tuple[float, float, float]:
    found = _get(value, name, list, where)
    if len(found) != 3 or not all(isinstance(item, int | float) for item in found):
        raise BundleError(f"{where}: the field '{name}' must be three numbers, got {found!r:.60}")
    return float(found[0]), float(found[1]), float(found[2])
