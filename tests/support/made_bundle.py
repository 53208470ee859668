"""A hand-written bundle of five small ONNX graphs that find the colour a phrase names."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from msgspec.structs import replace
from onnx import helper, numpy_helper
from tokenizers import Tokenizer as FastTokenizer

from rsrefseg.engines.bundle.bundle import REFERENCE_NAME, TOKENIZER_NAME, Bundle, file_record
from rsrefseg.engines.bundle.contracts import Dim, Geometry, Stage, StageContract, TensorSpec, stage_contracts
from rsrefseg.engines.bundle.manifest import (
    AttentionRecord,
    Manifest,
    Preprocessing,
    Provenance,
    StageRecord,
    TextPolicy,
    bytes_with_digest,
)
from rsrefseg.engines.bundle.reference import ReferenceSample, write_reference
from rsrefseg.engines.onnxruntime.engine import OnnxRuntimeEngine
from rsrefseg.model.tokenizer import build_word_tokenizer

GEOMETRY = Geometry(
    image_size=32, clip_tokens=16, clip_channels=6, text_length=64,
    prompt_tokens=4, prompt_channels=5, embedding_grid=4, mask_grid=16,
)  # fmt: skip
CONTRACTS = stage_contracts(GEOMETRY)
OPSET = 18
PHRASES = ("the red square", "the green square on the left", "a small blue square", "nothing but a square")
COLOURS = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1)}


def tokenizer() -> FastTokenizer:
    return build_word_tokenizer(PHRASES, vocab_size=40)


POOL = """
    pixels = Cast <to = 1> (image)
    pooled = AveragePool <kernel_shape = [8, 8], strides = [8, 8]> (pixels)
    scaled = Div (pooled, full)
"""
AVERAGE = """
    weight = Cast <to = 1> (token_mask)
    column = Unsqueeze (weight, last)
    masked = Mul (word_features, column)
    total = ReduceSum <keepdims = 0> (masked, middle)
    count = ReduceSum <keepdims = 1> (weight, middle)
    average = Div (total, count)
"""
NODES = {
    Stage.SIGLIP_VISION: f"""{POOL}
        rows = Reshape (scaled, flat)
        tokens = Transpose <perm = [0, 2, 1]> (rows)
        clip_features = MatMul (tokens, to_six)
    """,
    Stage.SIGLIP_TEXT: f"""
        word_features = Gather (table, input_ids)
        {AVERAGE}
        sentence_feature = Identity (average)
    """,
    Stage.ATTN_PROMPTER: f"""{AVERAGE}
        twenty = MatMul (average, small)
        sparse_prompts = Reshape (twenty, grid)
        tokens = Squeeze (clip_features, first)
        turned = Transpose <perm = [1, 0]> (tokens)
        likeness = MatMul (sentence_feature, turned)
        logits = Sub (likeness, threshold)
        coarse = Reshape (logits, four)
        mask_prompt = Resize <mode = "linear"> (coarse, , scales)
    """,
    Stage.SAM_ENCODER: f"""{POOL}
        image_embedding = Conv (scaled, kernel)
    """,
    Stage.SAM_DECODER: """
        shift = ReduceMean <keepdims = 1> (sparse_prompts, both)
        shift4 = Unsqueeze (shift, last)
        light = ReduceMean <keepdims = 1> (image_embedding, all)
        shifted = Add (mask_prompt, shift4)
        mask_logits = Add (shifted, light)
    """,
}


def weights() -> dict[Stage, dict[str, Any]]:
    """Return the constants of every stage by name."""
    random = np.random.default_rng(1)
    table = random.normal(scale=0.01, size=(40, 6)).astype(np.float32)
    for word, colour in COLOURS.items():
        bright = np.array(colour, np.float32)
        table[tokenizer().token_to_id(word)] = np.hstack([bright, 1 - bright]) * 20
    mix = random.normal(scale=0.01, size=(3, 5)).astype(np.float32)
    small = random.normal(scale=0.001, size=(6, 20)).astype(np.float32)
    full, to_six = np.float32(255), np.hstack([np.eye(3), -np.eye(3)]).astype(np.float32)
    return {
        Stage.SIGLIP_VISION: {"full": full, "flat": [0, 3, 16], "to_six": to_six},
        Stage.SIGLIP_TEXT: {"table": table, "last": [2], "middle": [1]},
        Stage.ATTN_PROMPTER: {
            "last": [2], "middle": [1], "small": small, "grid": [-1, 4, 5], "first": [0],
            "threshold": np.float32(1), "four": [-1, 1, 4, 4], "scales": np.array([1, 1, 4, 4], np.float32),
        },
        Stage.SAM_ENCODER: {"full": full, "kernel": mix.T[..., None, None].copy()},
        Stage.SAM_DECODER: {"both": [1, 2], "last": [3], "all": [1, 2, 3]},
    }  # fmt: skip


def value_info(spec: TensorSpec) -> onnx.ValueInfoProto:
    shape = [size.name if isinstance(size, Dim) else size for size in spec.shape]
    return helper.make_tensor_value_info(spec.name, helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype)), shape)


def graph_of(contract: StageContract) -> onnx.ModelProto:
    nodes = onnx.parser.parse_graph(f"nodes () => () {{ {NODES[contract.stage]} }}").node
    inputs, outputs = ([value_info(spec) for spec in specs] for specs in (contract.inputs, contract.outputs))
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights()[contract.stage].items()]
    graph = helper.make_graph(nodes, str(contract.stage), inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model


def write_graph(folder: Path, stage: Stage) -> StageRecord:
    """Write a stage; the weights of the text tower are in a separate file."""
    model, path = graph_of(CONTRACTS[stage]), folder / f"{stage}.onnx"
    data: tuple = ()
    if stage is Stage.SIGLIP_TEXT:
        onnx.save(model, path, save_as_external_data=True, location=f"{path.name}.data", size_threshold=100)
        data = (file_record(folder / f"{path.name}.data"),)
    else:
        onnx.save(model, path)
    forms = AttentionRecord("published", "additive", 2, "onnxruntime", "made by hand")
    attention = forms if stage is Stage.SAM_ENCODER else None
    return StageRecord(
        CONTRACTS[stage], file_record(path), data, OPSET, "fp32", attention, flops=1000, parameters=10, weight_bytes=40
    )


def make_bundle(folder: Path) -> Bundle:
    """Write a complete bundle with one reference sample."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer().save(str(folder / TOKENIZER_NAME))
    stages = {stage: write_graph(folder, stage) for stage in Stage}
    manifest = Manifest(
        preset="made",
        geometry=GEOMETRY,
        stages=stages,
        preprocessing=Preprocessing(32, 32, (0.5,) * 3, (0.5,) * 3, (0.4,) * 3, (0.2,) * 3),
        text=TextPolicy("fixed", 64, 1),
        tokenizer=file_record(folder / TOKENIZER_NAME),
        reference=None,
        provenance=Provenance("0" * 64, False, {"max_difference": 0.0}, {"numpy": np.__version__}),
    )
    sample = made_sample(Bundle(folder, manifest))
    write_reference(folder / REFERENCE_NAME, [sample])
    Bundle.write_manifest(folder, replace(manifest, reference=file_record(folder / REFERENCE_NAME)))
    return Bundle.open(folder)


def made_sample(bundle: Bundle) -> ReferenceSample:
    """Run every stage on one image and two phrases."""
    tokens = bundle.tokenizer().encode(PHRASES[:2])
    image = np.zeros((1, 3, 32, 32), np.uint8)
    image[:, 0, :16, :16] = 255
    tensors = {"image": image, "input_ids": tokens.input_ids, "token_mask": tokens.token_mask}
    with OnnxRuntimeEngine(bundle, threads=1) as engine:
        for stage in Stage:
            tensors |= engine.run(stage, {spec.name: tensors[spec.name] for spec in CONTRACTS[stage].inputs})
    masks = np.zeros((2, 20, 30), np.bool_)
    return ReferenceSample(PHRASES[:2], tensors, masks, (20, 30))


def changed_graph(folder: Path, tmp_path: Path, stage: Stage, change: Callable[[onnx.ModelProto], None]) -> Bundle:
    """Copy the bundle to ``tmp_path``, change one graph and update its record."""
    copy = Path(shutil.copytree(folder, tmp_path / "bundle"))
    model = onnx.load(copy / f"{stage}.onnx", load_external_data=False)
    change(model)
    change_stage(copy, stage, model)
    return Bundle.open(copy)


def change_stage(folder: Path, stage: Stage, model: onnx.ModelProto | None = None, **fields: Any) -> None:
    """Replace the graph of a stage or fields of its record, and update the manifest."""
    path = folder / f"{stage}.onnx"
    if model is not None:
        onnx.save(model, path)
    values = msgspec.to_builtins(fields | {"graph": file_record(path)})
    change_manifest(folder, lambda value: value["stages"][stage].update(values))


def make_dynamic(folder: Path, copy: Path) -> Path:
    """Copy a bundle and record that its text tower is INT8 with dynamic scales; the graph stays as it is."""
    shutil.copytree(folder, copy)
    change_stage(copy, Stage.SIGLIP_TEXT, precision="int8", quantization={"kind": "dynamic", "layers": 1})
    return copy


def change_manifest(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change JSON values of ``bundle.json`` and update its digest, as a faulty writer would."""
    path = folder / "bundle.json"
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    path.write_bytes(bytes_with_digest(value))
