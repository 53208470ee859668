"""A bundle is used as it was exported or not at all; contracts say once what the five graphs take and give."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rsrefseg.engines.bundle import bundle as bundle_module
from rsrefseg.engines.bundle.bundle import Bundle, default_bundle_path, file_record
from rsrefseg.engines.bundle.contracts import Dim, Geometry, Stage, StageContract, TensorSpec, stage_contracts
from rsrefseg.engines.bundle.manifest import SCHEMA_VERSION, AttentionRecord, FileRecord, Manifest, seal
from rsrefseg.engines.bundle.reference import load_reference
from rsrefseg.engines.errors import BadInputError, BundleError
from tests.support.made_bundle import CONTRACTS, GEOMETRY, make_bundle

FULL_SIZE = Geometry(1024, 729, 1152, 64, 49, 256, 64, 256)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("whole") / "bundle").root


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "bundle"))


def refused(folder: Path, *told: str) -> None:
    with pytest.raises(BundleError) as refusal:
        use_everything(folder)
    for part in told:
        assert part in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert refusal.value.exit_code == 2


def use_everything(folder: Path) -> None:
    bundle = Bundle.open(folder)
    for record in bundle.manifest.files:
        bundle.verified_path(record.name)


def changed_manifest(folder: Path, change: Any) -> None:
    """Spoil ``bundle.json`` as a faulty writer would, with a digest that fits."""
    path = folder / "bundle.json"
    value = json.loads(path.read_text())
    change(value)
    path.write_bytes(seal(value))


def test_a_whole_bundle_opens_and_hands_out_its_files(folder: Path) -> None:
    bundle = Bundle.open(folder)
    assert bundle.manifest.geometry == GEOMETRY
    assert {stage: record.contract for stage, record in bundle.manifest.stages.items()} == CONTRACTS
    assert bundle.graph_path(Stage.SAM_DECODER) == folder / "sam_decoder.onnx"
    assert bundle.tokenizer().encode(["the red square"]).token_mask.sum() == 3
    assert bundle.tokenizer().pad_id == 1


def test_a_manifest_survives_writing_and_reading(folder: Path, tmp_path: Path) -> None:
    manifest = Bundle.open(folder).manifest
    path = Bundle.write_manifest(tmp_path, manifest)
    assert Manifest.from_json(json.loads(path.read_text())) == manifest
    assert Bundle.open(folder).manifest == manifest
    assert path.read_text() == (folder / "bundle.json").read_text()


def test_the_default_is_the_variable_or_the_working_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RSREFSEG_BUNDLE", raising=False)
    assert default_bundle_path() == Path("bundle")
    assert Bundle.open().root == Path("bundle")
    monkeypatch.setenv("RSREFSEG_BUNDLE", str(tmp_path / "other"))
    refused_line = f"no bundle at '{tmp_path / 'other'}': make one with `rsrefseg export`"
    with pytest.raises(BundleError, match=refused_line):
        Bundle.open()


def test_what_is_no_bundle_is_refused(folder: Path, tmp_path: Path) -> None:
    refused(tmp_path / "missing", "no bundle at", "rsrefseg export", "--bundle")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "is no bundle", "bundle.json")
    refused(folder / "tokenizer.json", "is no bundle")
    (folder / "bundle.json").write_bytes(b"\xff\xfe{}")
    refused(folder, "no readable JSON")


def test_a_cut_manifest_is_refused(folder: Path) -> None:
    text = (folder / "bundle.json").read_text()
    for length in (0, 1, 100, len(text) // 2, len(text) - 3):
        (folder / "bundle.json").write_text(text[:length])
        refused(folder, "bundle.json", "no readable JSON")


def test_the_form_of_attention_is_read_back_as_it_was_written() -> None:
    record = AttentionRecord("published", "additive", 16, "onnxruntime", "because it was measured")
    assert AttentionRecord.from_json(json.loads(json.dumps(record.to_json())), "here") == record
    assert str(record) == "windowed published, global additive in 16 parts, for onnxruntime"
    in_parts = replace(record, mlp_parts=4)
    assert AttentionRecord.from_json(json.loads(json.dumps(in_parts.to_json())), "here") == in_parts
    assert str(in_parts) == "windowed published, global additive in 16 parts, MLP in 4 parts, for onnxruntime"
    older = {name: value for name, value in record.to_json().items() if name != "mlp_parts"}
    assert AttentionRecord.from_json(older, "here") == record
    with pytest.raises(BundleError, match="here lacks the field 'global'"):
        AttentionRecord.from_json({"windowed": "published"}, "here")


@pytest.mark.parametrize("version", [0, 1, 3, "2", None])
def test_another_schema_version_is_refused_with_the_way_out(folder: Path, version: Any) -> None:
    changed_manifest(folder, lambda value: value.update(schema_version=version))
    refused(folder, f"schema version {version!r}", f"reads {SCHEMA_VERSION}", "export the bundle again")


def test_every_file_that_is_missing_is_named(whole: Path, tmp_path: Path) -> None:
    for name in [record.name for record in Bundle.open(whole).manifest.files]:
        folder = Path(shutil.copytree(whole, tmp_path / name))
        (folder / name).unlink()
        refused(folder, name, "is missing", "rsrefseg export")


def test_every_file_that_is_cut_short_or_longer_is_named(whole: Path, tmp_path: Path) -> None:
    for name in [record.name for record in Bundle.open(whole).manifest.files]:
        folder = Path(shutil.copytree(whole, tmp_path / name))
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[:-1])
        refused(folder, name, "cut short")
        (folder / name).write_bytes(data + b"\0")
        refused(folder, name, "changed")


def test_one_changed_byte_in_any_file_is_named(whole: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    for name in [record.name for record in Bundle.open(whole).manifest.files]:
        folder = Path(shutil.copytree(whole, tmp_path / name))
        data = bytearray((folder / name).read_bytes())
        data[random.integers(len(data))] ^= 1
        (folder / name).write_bytes(data)
        refused(folder, name, "was changed after export")


def test_weights_beside_a_graph_are_checked_with_it(folder: Path) -> None:
    data = folder / "siglip_text.onnx.data"
    data.write_bytes(bytes(len(data.read_bytes())))
    with pytest.raises(BundleError, match=r"siglip_text.onnx.data' was changed"):
        Bundle.open(folder).graph_path(Stage.SIGLIP_TEXT)


def test_a_file_is_digested_once_and_again_when_it_changes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digested: list[str] = []

    def counted(path: Path) -> str:
        digested.append(path.name)
        return real(path)

    real = bundle_module.sha256_file
    monkeypatch.setattr(bundle_module, "sha256_file", counted)
    bundle = Bundle.open(folder)
    assert digested == []
    for _ in range(3):
        bundle.verified_path("tokenizer.json")
    assert digested == ["tokenizer.json"]
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace("red", "rad"))
    with pytest.raises(BundleError, match="was changed"):
        bundle.verified_path("tokenizer.json")


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "a/b", "a\\b", "..", ".", "", ".hidden", "C:x", "a\0b", "bundle.json"]
)
def test_a_file_name_that_leads_elsewhere_is_refused(folder: Path, name: str) -> None:
    changed_manifest(folder, lambda value: value["stages"]["sam_encoder"]["graph"].update(name=name))
    refused(folder, "bundle.json", repr(name))


def test_a_name_that_is_no_part_of_the_bundle_is_refused(folder: Path) -> None:
    (folder / "stray.bin").touch()
    for name in ("stray.bin", "../bundle/tokenizer.json", "bundle.json"):
        with pytest.raises(BundleError, match="has no file"):
            Bundle.open(folder).verified_path(name)


def manifest_faults() -> dict[str, tuple[Any, str]]:
    """Ways to spoil a manifest, and what the line says."""
    return {
        "list": (lambda value: value.clear(), "schema version None"),
        "no stages": (lambda value: value.pop("stages"), "lacks the field 'stages'"),
        "a stage less": (lambda value: value["stages"].pop("sam_decoder"), "lacks the stages sam_decoder"),
        "a stage more": (lambda value: value["stages"].update(other={}), "unknown stage 'other'"),
        "opset text": (lambda value: value["stages"]["sam_encoder"].update(opset="18"), "'opset' must be int"),
        "opset bool": (lambda value: value["stages"]["sam_encoder"].update(opset=True), "'opset' must be int"),
        "precision": (lambda value: value["stages"]["sam_encoder"].update(precision="int4"), "precision 'int4'"),
        "digest": (lambda value: value["tokenizer"].update(sha256="12"), "no SHA-256"),
        "size": (lambda value: value["tokenizer"].update(size_bytes=-1), "is negative"),
        "twice": (
            lambda value: value["tokenizer"].update(name="sam_encoder.onnx"),
            "lists the file 'sam_encoder.onnx' twice",
        ),
        "padding": (lambda value: value["text"].update(padding="left"), "text padding 'left'"),
        "length": (lambda value: value["text"].update(length=32), "text_length as 64 and as 32"),
        "means": (lambda value: value["preprocessing"].update(sam_mean=[1, 2]), "three numbers"),
        "geometry": (lambda value: value["geometry"].pop("image_size"), "not a geometry"),
        "no square": (lambda value: value["geometry"].update(clip_tokens=15), "square number"),
        "zero": (lambda value: value["geometry"].update(mask_grid=0), "mask_grid must be a whole number"),
        "dtype": (
            lambda value: value["stages"]["sam_encoder"]["contract"]["inputs"][0].update(dtype="complex64"),
            "dtype 'complex64'",
        ),
        "dim": (
            lambda value: value["stages"]["sam_encoder"]["contract"]["inputs"][0].update(shape=["images"]),
            "not a tensor spec",
        ),
        "bounds": (
            lambda value: value["stages"]["sam_encoder"]["contract"]["inputs"][0]["shape"][0].update(max=0),
            "1 <= min <= opt <= max",
        ),
        "other contract": (
            lambda value: value["stages"]["sam_encoder"]["contract"].update(stage="sam_decoder"),
            "another stage's",
        ),
        "random weights": (lambda value: value["provenance"].update(random_weights="no"), "must be bool"),
    }


@pytest.mark.parametrize("fault", manifest_faults())
def test_a_manifest_at_odds_with_itself_is_refused(folder: Path, fault: str) -> None:
    change, told = manifest_faults()[fault]
    changed_manifest(folder, change)
    refused(folder, told)


def test_any_changed_byte_of_the_manifest_is_refused(folder: Path) -> None:
    data = (folder / "bundle.json").read_bytes()
    random = np.random.default_rng(4)
    for cut in random.integers(len(data), size=200):
        for byte in (data[cut] ^ 1, ord(" "), ord("0")):
            changed = data[:cut] + bytes([byte]) + data[cut + 1 :]
            if changed != data:
                (folder / "bundle.json").write_bytes(changed)
                refused(folder, "bundle.json")


def test_a_bundles_digest_tells_it_from_others(folder: Path) -> None:
    first = Bundle.open(folder).digest
    assert len(first) == 64
    assert Bundle.open(folder).digest == first
    changed_manifest(folder, lambda value: value.update(preset="other"))
    assert Bundle.open(folder).digest != first


def test_a_bundle_whose_replacement_was_interrupted_is_found(folder: Path) -> None:
    folder.rename(folder.with_name(".bundle.replaced"))
    assert Bundle.open(folder).root == folder


def test_reference_samples_come_back_as_written(folder: Path) -> None:
    bundle = Bundle.open(folder)
    (sample,) = load_reference(bundle)
    stored = load_file(folder / "reference.safetensors")
    assert stored["0/image"].shape == (3, 32, 32)
    assert sample.tensors["image"].shape == (1, 3, 32, 32)
    assert (sample.phrases, sample.original_size) == (("the red square", "the green square on the left"), (20, 30))
    assert sample.masks.shape == (2, 20, 30)
    for contract in CONTRACTS.values():
        contract.check_inputs(sample.inputs(contract))
        contract.check_outputs(sample.outputs(contract))
        for name, array in sample.outputs(contract).items():
            assert np.array_equal(array, stored[f"0/{name}"])


@pytest.mark.parametrize("fault", ["no tensor", "shape", "masks", "no phrases"])
def test_reference_samples_that_do_not_fit_are_refused(folder: Path, fault: str) -> None:
    path = folder / "reference.safetensors"
    tensors, metadata = load_file(path), {"phrases": '[["a", "b"]]'}
    if fault == "no tensor":
        del tensors["0/mask_logits"]
    elif fault == "shape":
        tensors["0/clip_features"] = tensors["0/clip_features"][:, :3].copy()
    elif fault == "masks":
        tensors["0/masks"] = tensors["0/masks"][:1].copy()
    else:
        metadata = {}
    save_file(tensors, path, metadata=metadata)
    record = file_record(path)
    changed_manifest(
        folder, lambda value: value["reference"].update(sha256=record.sha256, size_bytes=record.size_bytes)
    )
    with pytest.raises(BundleError, match=r"reference.safetensors' does not fit its bundle"):
        load_reference(Bundle.open(folder))


def test_a_bundle_without_reference_samples_says_so(folder: Path) -> None:
    changed_manifest(folder, lambda value: value.update(reference=None))
    with pytest.raises(BundleError, match="no reference samples"):
        load_reference(Bundle.open(folder))


def test_a_record_is_name_digest_and_size(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_record(tmp_path / "a") == FileRecord("a", digest, 3)


TABLE = {
    Stage.SIGLIP_VISION: (
        {"image": ("uint8", "[images=1..4, 3, 1024, 1024]")},
        {"clip_features": ("float32", "[images=1..4, 729, 1152]")},
    ),
    Stage.SIGLIP_TEXT: (
        {"input_ids": ("int64", "[phrases=1..32, 64]"), "token_mask": ("bool", "[phrases=1..32, 64]")},
        {
            "word_features": ("float32", "[phrases=1..32, 64, 1152]"),
            "sentence_feature": ("float32", "[phrases=1..32, 1152]"),
        },
    ),
    Stage.ATTN_PROMPTER: (
        {
            "clip_features": ("float32", "[1, 729, 1152]"),
            "word_features": ("float32", "[phrases=1..32, 64, 1152]"),
            "sentence_feature": ("float32", "[phrases=1..32, 1152]"),
            "token_mask": ("bool", "[phrases=1..32, 64]"),
        },
        {
            "sparse_prompts": ("float32", "[phrases=1..32, 49, 256]"),
            "mask_prompt": ("float32", "[phrases=1..32, 1, 256, 256]"),
        },
    ),
    Stage.SAM_ENCODER: (
        {"image": ("uint8", "[images=1..4, 3, 1024, 1024]")},
        {"image_embedding": ("float32", "[images=1..4, 256, 64, 64]")},
    ),
    Stage.SAM_DECODER: (
        {
            "image_embedding": ("float32", "[1, 256, 64, 64]"),
            "sparse_prompts": ("float32", "[phrases=1..32, 49, 256]"),
            "mask_prompt": ("float32", "[phrases=1..32, 1, 256, 256]"),
        },
        {"mask_logits": ("float32", "[phrases=1..32, 1, 256, 256]")},
    ),
}


@pytest.mark.parametrize("stage", Stage)
def test_full_size_contracts_are_those_of_the_design(stage: Stage) -> None:
    contract = stage_contracts(FULL_SIZE)[stage]
    for specs, want in zip((contract.inputs, contract.outputs), TABLE[stage], strict=True):
        assert {spec.name: (spec.dtype, spec.shape_text) for spec in specs} == want


def test_every_input_is_given_or_is_another_stages_output() -> None:
    known = {"image", "input_ids", "token_mask"}
    for contract in CONTRACTS.values():
        assert {spec.name for spec in contract.inputs} <= known
        known |= {spec.name for spec in contract.outputs}


@pytest.mark.parametrize("stage", Stage)
def test_contracts_survive_json(stage: Stage) -> None:
    contract = stage_contracts(FULL_SIZE, Dim("phrases", 1, 8, 16))[stage]
    assert StageContract.from_json(json.loads(json.dumps(contract.to_json()))) == contract


def test_a_spec_says_what_it_wants_and_what_it_got() -> None:
    spec = CONTRACTS[Stage.SIGLIP_TEXT].input("input_ids")
    spec.check(np.zeros((32, 64), np.int64))
    for wrong in (np.zeros((33, 64), np.int64), np.zeros((1, 63), np.int64), np.zeros(64, np.int64), np.zeros((1, 64))):
        with pytest.raises(BadInputError, match=r"'input_ids' must be int64 \[phrases=1..32, 64\], got"):
            spec.check(wrong)
    assert spec.sized() == (1, 64)
    assert spec.sized(phrases=5) == (5, 64)


def test_feeds_are_checked_as_a_whole() -> None:
    contract = CONTRACTS[Stage.SIGLIP_TEXT]
    ids, mask = np.zeros((2, 64), np.int64), np.zeros((2, 64), np.bool_)
    contract.check_inputs({"input_ids": ids, "token_mask": mask})
    faults = {
        "lacks its input token_mask": {"input_ids": ids},
        "has no input extra": {"input_ids": ids, "token_mask": mask, "extra": mask},
        "'phrases' is 2 and, in input 'token_mask', 1": {"input_ids": ids, "token_mask": mask[:1]},
        "stage 'siglip_text': tensor 'token_mask' must be bool": {"input_ids": ids, "token_mask": ids},
    }
    for told, feeds in faults.items():
        with pytest.raises(BadInputError, match=told):
            contract.check_inputs(feeds)
    with pytest.raises(BadInputError, match="lacks its output word_features"):
        contract.check_outputs({})


def test_specs_and_dims_are_validated() -> None:
    for make in (
        lambda: Dim("phrases", 0, 1, 2),
        lambda: Dim("phrases", 2, 1, 3),
        lambda: Dim("a b", 1, 1, 1),
        lambda: TensorSpec("a", "float64", (1,)),
        lambda: TensorSpec("a", "float32", (0,)),
        lambda: Geometry(1024, 728, 1152, 64, 49, 256, 64, 256),
    ):
        with pytest.raises(BundleError):
            make()
