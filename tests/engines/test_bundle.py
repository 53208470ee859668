"""A bundle is used as it was exported or not at all; contracts say once what the five graphs take and give."""

import functools
import json
import operator
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file, save_file

from rsrefseg.engines.bundle import bundle as bundle_module
from rsrefseg.engines.bundle.bundle import Bundle, default_bundle_path, file_record
from rsrefseg.engines.bundle.contracts import Geometry, Stage, stage_contracts
from rsrefseg.engines.bundle.manifest import manifest_bytes
from rsrefseg.engines.bundle.reference import load_reference
from rsrefseg.engines.errors import BadInputError, BundleError
from rsrefseg.engines.onnxruntime.engine import OnnxRuntimeEngine
from rsrefseg.engines.openvino.engine import OpenVinoEngine
from tests.support.made_bundle import CONTRACTS, GEOMETRY, change_manifest, changed_graph


@pytest.fixture
def folder(folder: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(folder, tmp_path / "bundle"))


def refused(folder: Path, *facts: str) -> None:
    """Opening the bundle or reading a file of it is refused in one line with these facts."""
    with pytest.raises(BundleError) as refusal:
        [Bundle.open(folder).verified_path(record.name) for record in Bundle.open(folder).manifest.files]
    for fact in facts:
        assert fact in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_whole_bundle_opens_and_hands_out_its_files(folder: Path) -> None:
    bundle = Bundle.open(folder)
    assert bundle.manifest.geometry == GEOMETRY
    assert {stage: record.contract for stage, record in bundle.manifest.stages.items()} == CONTRACTS
    assert bundle.graph_path(Stage.SAM_DECODER) == folder / "sam_decoder.onnx"
    assert bundle.tokenizer().encode(["the red square"]).token_mask.sum() == 3
    assert bundle.tokenizer().pad_id == 1


def test_a_manifest_is_written_byte_for_byte_as_it_was_read(folder: Path) -> None:
    data, digest = (folder / "bundle.json").read_bytes(), Bundle.open(folder).digest
    assert manifest_bytes(Bundle.open(folder).manifest) == data
    assert list(json.loads(data)) == [
        "schema_version", "preset", "geometry", "stages", "preprocessing", "text", "tokenizer", "reference",
        "provenance", "presence", "judgement", "digest",
    ]  # fmt: skip
    assert json.loads(data)["digest"] == digest
    change_manifest(folder, at(f"{ENCODER}.attention.mlp_parts"))  # older bundles lack it
    older = Bundle.open(folder)
    assert older.digest != digest
    attention = older.manifest.stages[Stage.SAM_ENCODER].attention
    assert attention is not None
    assert attention.mlp_parts == 1


def test_the_default_is_the_variable_or_the_working_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RSREFSEG_BUNDLE", raising=False)
    assert default_bundle_path() == Path("bundle")
    assert Bundle.open().root == Path("bundle")
    monkeypatch.setenv("RSREFSEG_BUNDLE", str(tmp_path / "other"))
    with pytest.raises(BundleError, match=f"'{tmp_path / 'other'}'.*rsrefseg export"):
        Bundle.open()


def test_what_is_not_a_bundle_is_refused(folder: Path, tmp_path: Path) -> None:
    refused(tmp_path / "missing", "no bundle at", "rsrefseg export", "--bundle")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "empty", "bundle.json")
    refused(folder / "tokenizer.json", "tokenizer.json")
    text = (folder / "bundle.json").read_bytes()
    (folder / "bundle.json").write_text('{"schema_version": 2, "digest": ""}')
    refused(folder, "bundle.json", "$.digest")
    for content in (b"\xff\xfe{}", b"[" * 100_000, *(text[:length] for length in (0, 1, 100, len(text) - 3))):
        (folder / "bundle.json").write_bytes(content)
        refused(folder, "bundle.json", "JSON")


SPOILED_FILES: dict[str, Callable[[bytes], bytes]] = {
    "is missing": lambda data: b"",
    "cut short": lambda data: data[:-1],
    "changed": lambda data: data + b"\0",
    "was changed after export": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
}


@pytest.mark.parametrize("kind", SPOILED_FILES)
def test_every_file_that_is_not_as_exported_is_named(kind: str, folder: Path) -> None:
    for record in Bundle.open(folder).manifest.files:
        data = (folder / record.name).read_bytes()
        (folder / record.name).unlink()
        if spoiled := SPOILED_FILES[kind](data):
            (folder / record.name).write_bytes(spoiled)
        refused(folder, f"{record.name}'", kind, "rsrefseg export")
        if record.name == "siglip_text.onnx.data":  # weights are checked with their graph
            with pytest.raises(BundleError, match=record.name):
                Bundle.open(folder).graph_path(Stage.SIGLIP_TEXT)
        (folder / record.name).write_bytes(data)


@pytest.mark.parametrize("runtime", [OnnxRuntimeEngine, OpenVinoEngine])
def test_a_graph_cannot_read_weights_outside_its_bundle(runtime: type, folder: Path, tmp_path: Path) -> None:
    def lead_outside(model: onnx.ModelProto) -> None:
        moved = [entry for t in model.graph.initializer for entry in t.external_data if entry.key == "location"]
        assert moved
        for entry in moved:
            entry.value = "../secret"

    bundle = changed_graph(folder, tmp_path / "changed", Stage.SIGLIP_TEXT, lead_outside)
    shutil.copyfile(folder / "siglip_text.onnx.data", tmp_path / "changed" / "secret")
    feeds = load_reference(bundle)[0].inputs(CONTRACTS[Stage.SIGLIP_TEXT])
    with runtime(bundle, threads=1) as engine, pytest.raises(BundleError, match="secret"):
        engine.run(Stage.SIGLIP_TEXT, feeds)


def test_a_file_is_digested_once_and_again_when_it_changes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digested: list[str] = []
    real = bundle_module.sha256_of
    monkeypatch.setattr(bundle_module, "sha256_of", lambda path: digested.append(path.name) or real(path))
    bundle = Bundle.open(folder)
    for _ in range(3):
        bundle.verified_path("tokenizer.json")
    assert digested == ["tokenizer.json"]
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace("red", "rad"))
    with pytest.raises(BundleError, match="was changed"):
        bundle.verified_path("tokenizer.json")


def test_a_name_that_is_no_part_of_the_bundle_is_refused(folder: Path) -> None:
    (folder / "stray.bin").touch()
    for name in ("stray.bin", "../bundle/tokenizer.json", "bundle.json"):
        with pytest.raises(BundleError, match=name):
            Bundle.open(folder).verified_path(name)


def at(path: str, value: Any = ...) -> Callable[[Any], None]:
    """Sets what is at a path of the manifest, or removes it."""
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]

    def change(document: Any) -> None:
        parent = functools.reduce(operator.getitem, parents, document)
        if value is ...:
            del parent[last]
        else:
            parent[last] = value

    return change


ENCODER = "stages.sam_encoder"
IMAGE = f"{ENCODER}.contract.inputs.0"
# How the manifest is spoiled, and a key word of the refusal where it does not name the path itself.
SPOILED: list[tuple[str, Any, str]] = [
    *(("schema_version", version, f"schema version {version!r}") for version in (0, 1, 3, "2", None, True)),
    ("schema_version", ..., "schema version None"),
    ("stages", ..., ""),
    ("stages.sam_decoder", ..., "sam_decoder"),
    ("stages.other", {}, "other"),
    *((f"{ENCODER}.opset", opset, "") for opset in ("18", True, 0)),
    (f"{ENCODER}.flops", -1, ""),
    (f"{ENCODER}.precision", "int4", ""),
    (f"{ENCODER}.precision_plan", [{"module": "head"}], ""),
    (f"{ENCODER}.precision_plan", [{"module": "head", "reason": "x"}], "float32"),
    (f"{ENCODER}.attention", {"windowed": "published"}, "global"),
    (f"{ENCODER}.data", [3], ""),
    (f"{ENCODER}.contract.stage", "sam_decoder", "another stage's"),
    (f"{IMAGE}.dtype", "complex64", f"$.{ENCODER}.contract.inputs"),
    *((f"{IMAGE}.shape", shape, f"$.{ENCODER}.contract.inputs") for shape in (["images"], [0])),
    *((f"{IMAGE}.shape.0.{bound}", 0, "min <= opt <= max") for bound in ("min", "opt", "max")),
    (f"{IMAGE}.shape.0.name", "a b", "identifier"),
    (f"{IMAGE}.shape.0.unit", "px", "unit"),
    *(("tokenizer.sha256", digest, "") for digest in ("12", "A" * 64, "0" * 64 + "\n")),
    *(("tokenizer.size_bytes", size, "") for size in (-1, 1.5)),
    ("tokenizer.name", "sam_encoder.onnx", "'sam_encoder.onnx' is listed twice"),
    *(
        (f"{ENCODER}.graph.name", name, "")
        for name in ("../x", "/etc/passwd", "a/b", "a\\b", "..", ".", "", ".hidden", "C:x", "a\0b", "bundle.json", None)
    ),
    ("text.padding", "left", ""),
    ("text.length", 32, "text_length"),
    *(("preprocessing.sam_mean", mean, "") for mean in ([1, 2], "abc")),
    ("preprocessing.image_size", 64, "image_size"),
    ("geometry.image_size", ..., "image_size"),
    ("geometry.depth", 3, "depth"),
    ("geometry.clip_tokens", 15, "square number"),
    ("geometry.mask_grid", 0, ""),
    ("provenance.random_weights", "no", ""),
    ("provenance.versions", {"numpy": 2}, ""),
]


@pytest.mark.parametrize(("path", "value", "fact"), SPOILED)
def test_a_manifest_with_a_wrong_value_is_refused(path: str, value: Any, fact: str, folder: Path) -> None:
    change_manifest(folder, at(path, value))
    refused(folder, str(folder), "bundle.json", fact or f"$.{path}")


def test_any_changed_byte_of_the_manifest_is_refused(folder: Path) -> None:
    data = (folder / "bundle.json").read_bytes()
    random = np.random.default_rng(4)
    for cut in random.integers(len(data), size=200):
        for byte in (data[cut] ^ 1, ord(" "), ord("0")):
            changed = data[:cut] + bytes([byte]) + data[cut + 1 :]
            if changed != data:
                (folder / "bundle.json").write_bytes(changed)
                refused(folder, "bundle.json")


def test_reference_samples_are_read_as_written(folder: Path) -> None:
    (sample,) = load_reference(Bundle.open(folder))
    stored = load_file(folder / "reference.safetensors")
    assert stored["0/image"].shape == (3, 32, 32)
    assert sample.tensors["image"].shape == (1, 3, 32, 32)
    assert (sample.phrases, sample.original_size) == (("the red square", "the green square on the left"), (20, 30))
    assert sample.masks.shape == (2, 20, 30)
    for contract in CONTRACTS.values():
        contract.check_inputs(sample.inputs(contract))
        for name, array in sample.outputs(contract).items():
            assert np.array_equal(array, stored[f"0/{name}"])


FITTING = {"phrases": '[["a", "b"]]'}
REFERENCE_FAULTS: list[tuple[dict[str, np.ndarray | None], dict[str, str]]] = [
    ({"0/mask_logits": None}, FITTING),
    ({"0/clip_features": np.ones((1, 3, 6), np.float32)}, FITTING),
    ({"0/masks": np.zeros((1, 20, 30), np.bool_)}, FITTING),
    ({}, {"phrases": '"ab"'}),
    ({}, {}),
]


@pytest.mark.parametrize(("changed", "metadata"), REFERENCE_FAULTS)
def test_reference_samples_that_do_not_fit_are_refused(
    folder: Path, changed: dict[str, np.ndarray | None], metadata: dict[str, str]
) -> None:
    path = folder / "reference.safetensors"
    tensors = load_file(path) | changed
    save_file({name: array for name, array in tensors.items() if array is not None}, path, metadata)
    change_manifest(folder, at("reference", msgspec.to_builtins(file_record(path))))
    with pytest.raises(BundleError, match=r"reference.safetensors'"):
        load_reference(Bundle.open(folder))


SHAPES = {
    "image": "uint8 [images=1..4, 3, 1024, 1024]",
    "clip_features": "float32 [images=1..4, 729, 1152]",
    "input_ids": "int64 [phrases=1..32, 64]",
    "token_mask": "bool [phrases=1..32, 64]",
    "word_features": "float32 [phrases=1..32, 64, 1152]",
    "sentence_feature": "float32 [phrases=1..32, 1152]",
    "sparse_prompts": "float32 [phrases=1..32, 49, 256]",
    "mask_prompt": "float32 [phrases=1..32, 1, 256, 256]",
    "image_embedding": "float32 [images=1..4, 256, 64, 64]",
    "mask_logits": "float32 [phrases=1..32, 1, 256, 256]",
}
GRAPHS = {
    Stage.SIGLIP_VISION: ("image", "clip_features"),
    Stage.SIGLIP_TEXT: ("input_ids token_mask", "word_features sentence_feature"),
    Stage.ATTN_PROMPTER: ("clip_features word_features sentence_feature token_mask", "sparse_prompts mask_prompt"),
    Stage.SAM_ENCODER: ("image", "image_embedding"),
    Stage.SAM_DECODER: ("image_embedding sparse_prompts mask_prompt", "mask_logits"),
}


def test_full_size_contracts_are_those_of_the_design() -> None:
    for stage, contract in stage_contracts(Geometry(1024, 729, 1152, 64, 49, 256, 64, 256)).items():
        for specs, names in zip((contract.inputs, contract.outputs), GRAPHS[stage], strict=True):
            assert " ".join(spec.name for spec in specs) == names
            for spec in specs:
                # Prompter and decoder take one image.
                images = "1" if stage in (Stage.ATTN_PROMPTER, Stage.SAM_DECODER) else "images=1..4"
                assert f"{spec.dtype} {spec.shape_text}" == SHAPES[spec.name].replace("images=1..4", images)


IDS, MASK = np.zeros((2, 64), np.int64), np.zeros((2, 64), np.bool_)


@pytest.mark.parametrize(
    ("feeds", "fact"),
    [
        *(
            ({"input_ids": wrong, "token_mask": MASK}, r"'input_ids' must be int64 \[phrases=1..32, 64\], got")
            for wrong in (np.zeros((33, 64), np.int64), IDS[:, 1:], IDS[0], MASK)
        ),
        ({"input_ids": IDS}, "token_mask"),
        ({"input_ids": IDS, "token_mask": MASK, "extra": MASK}, "extra"),
        ({"input_ids": IDS, "token_mask": MASK[:1]}, "'phrases' is 2 and, in input 'token_mask', 1"),
    ],
)
def test_feeds_that_do_not_fit_their_contract_are_refused(feeds: dict[str, np.ndarray], fact: str) -> None:
    contract = CONTRACTS[Stage.SIGLIP_TEXT]
    contract.check_inputs({"input_ids": IDS, "token_mask": MASK})
    with pytest.raises(BadInputError, match=f"siglip_text.*{fact}"):
        contract.check_inputs(feeds)
    with pytest.raises(BadInputError, match="word_features"):
        contract.check_outputs({})
    assert [contract.input("input_ids").sized(**sizes) for sizes in ({}, {"phrases": 5})] == [(1, 64), (5, 64)]
