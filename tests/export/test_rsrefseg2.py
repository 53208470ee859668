"""The five graphs of RSRefSeg 2 against an independent rebuild of the published model, on ONNX Runtime."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx
import onnxruntime
import pytest
import rasterio
import torch

from rsrefseg.engines.batch import infer_images
from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.bundle.comparison import tensor_error
from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.engines.errors import BadInputError
from rsrefseg.engines.images.images import upsample_logits
from rsrefseg.engines.onnxruntime.cuda import OnnxRuntimeCudaEngine
from rsrefseg.engines.segmenter import Segmenter
from rsrefseg.export.checks import check_graph
from rsrefseg.export.export import export_run
from rsrefseg.export.graph import FUSED_OPSET, export_graph
from rsrefseg.export.precision.arithmetic import HalfArithmetic
from rsrefseg.export.precision.half_blocks import convert_to_half
from rsrefseg.export.settings import ExportSettings, Target
from rsrefseg.inference.attention import AttentionChoice
from rsrefseg.inference.stages import fold_for_inference
from rsrefseg.model.config import model_config
from rsrefseg.model.model import build_model
from rsrefseg.model.rsrefseg2.dense_prompt import UpsampledCosine
from rsrefseg.model.rsrefseg2.prompter import text_bins
from rsrefseg.model.stages import model_contracts, run_stage, run_stages
from rsrefseg.runs.convert import convert_checkpoint
from tests.support.engines import random_image
from tests.support.rasters import write_raster
from tests.support.stage_inputs import as_tuple, stage_inputs
from tests.support.upstream import randomize
from tests.support.upstream2 import PublicRSRefSeg2, small_config2, write_public2

pytestmark = pytest.mark.usefixtures("one_thread")

TOLERANCE = 1e-4  # of the largest logit: that of FP32 engines, see engines/bundle/tolerances.py
SQUARE, WIDE = (60, 60), (40, 60)
LENGTH = 64


@dataclass(frozen=True)
class Published:
    """A rebuilt public model and its bundle."""

    model: PublicRSRefSeg2
    bundle: Path


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    torch.set_num_threads(1)
    folder, model = tmp_path_factory.mktemp("public"), PublicRSRefSeg2(small_config2())
    file = write_public2(folder, model)
    convert_checkpoint(file, folder / "run", config=model.config, siglip=folder / "siglip")
    export_run(folder / "run", folder / "bundle")
    return Published(model, folder / "bundle")


@pytest.fixture
def segmenter(published: Published) -> Iterator[Segmenter]:
    with Segmenter.open(published.bundle, "onnxruntime", threads=1) as opened:
        yield opened


def noise(size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)


def test_phrases_of_every_length_match_the_public_model_in_one_batch(
    published: Published, segmenter: Segmenter
) -> None:
    """The exporter would bake the bins of one length into the graph, and nothing would report it."""
    mask, fell_back = np.arange(LENGTH) < np.arange(1, LENGTH + 1)[:, None], set()
    ids = np.where(mask, np.arange(2, 2 + LENGTH), 1)
    for image in (noise(SQUARE), noise(WIDE)):
        encoded = segmenter.encode_image(image)
        for rows in (slice(0, 32), slice(32, 64)):  # long and short phrases side by side
            found = segmenter.engine.predict(encoded.features, segmenter.engine.encode_text(ids[rows], mask[rows]))
            for logits, tokens, kept in zip(found, ids[rows], mask[rows], strict=True):
                expected = published.model(image, torch.from_numpy(tokens[kept])).numpy()
                assert np.abs(logits[0] - expected).max() <= TOLERANCE * np.abs(expected).max()
                fell_back.add(published.model.fell_back)
    assert fell_back == {False, True}, "both ways to choose a mask must occur"


@pytest.mark.parametrize("size", [SQUARE, WIDE, WIDE[::-1], (200, 120)])
def test_masks_match_the_public_model_at_the_size_of_the_image(
    published: Published, segmenter: Segmenter, size: tuple[int, int]
) -> None:
    image, phrases = noise(size), ["the large building", "a ship", "the ship on the left of the white ship"]
    for phrase, result in zip(phrases, segmenter.segment(image, phrases), strict=True):
        tokens = segmenter.tokenizer.encode([phrase])
        logits = published.model(image, torch.from_numpy(tokens.input_ids[tokens.token_mask]))
        expected, scale = published.model.mask(image, logits), logits.abs().max().item()
        assert result.mask.shape == size
        ties = np.abs(result.full_size_logits()) <= TOLERANCE * scale
        assert np.array_equal(result.mask[~ties], expected[~ties])


def test_no_padding_reaches_the_mask(segmenter: Segmenter) -> None:
    """The mask of a padded image is that of the square image with black below, cropped."""
    image, square = noise((32, 64)), np.zeros((64, 64, 3), np.uint8)
    square[:32] = image
    (wide,), (whole,) = (segmenter.segment(one, ["a ship"]) for one in (image, square))
    assert np.array_equal(wide.mask_logits, whole.mask_logits)
    assert np.allclose(wide.full_size_logits()[:-2], whole.full_size_logits()[:30], atol=1e-3)


def test_tiles_of_a_narrow_scene_are_padded_as_images_are(
    published: Published, segmenter: Segmenter, tmp_path: Path
) -> None:
    scene, path, out = noise((40, 128)), tmp_path / "scene.tif", tmp_path / "out"
    write_raster(path, scene.transpose(2, 0, 1))
    options = {"tile": "64", "overlap": 0, "probability": "float"}
    infer_images([str(path), "a ship"], bundle=published.bundle, backend="onnxruntime", out=out, **options)
    (left,) = segmenter.segment(scene[:, :64], ["a ship"])
    with rasterio.open(out / "scene_probability.tif") as raster:
        found = raster.read(1)[:, :64]
    expected = 1 / (1 + np.exp(-left.full_size_logits()))
    assert np.ptp(expected) > 0.1
    assert np.abs(found - expected).max() <= 1e-3


def test_the_bundle_records_the_architecture(segmenter: Segmenter) -> None:
    manifest = segmenter.bundle.manifest
    assert (manifest.preprocessing.profile, manifest.preprocessing.keep_aspect) == ("rsrefseg2", True)
    assert [spec.name for spec in manifest.stages[Stage.SAM_ENCODER].contract.outputs] == [
        "image_embedding",
        "high_res_1",
        "high_res_0",
    ]
    assert manifest.geometry.prompt_tokens == 9


def test_bins_are_those_of_adaptive_average_pooling() -> None:
    words = torch.randn(1, LENGTH, 5, dtype=torch.float64)
    for count in range(1, LENGTH + 1):
        keep = (torch.arange(LENGTH) < count)[None].double()
        pooled = torch.nn.functional.adaptive_avg_pool1d(words[:, :count].transpose(1, 2), 3).transpose(1, 2)
        assert torch.allclose(text_bins(keep) @ words, pooled, atol=1e-12)


def test_the_dense_prompt_equals_that_of_resized_features() -> None:
    features, vector = torch.randn(2, 7, 8, 8, dtype=torch.float64), torch.randn(2, 7, dtype=torch.float64)
    fine = torch.nn.functional.interpolate(features, (32, 32), mode="bilinear", align_corners=True)
    expected = torch.nn.functional.cosine_similarity(fine, vector[:, :, None, None], dim=1, eps=0)
    found = UpsampledCosine(8, 32).double()(features, vector)[:, 0]
    assert (found - expected).abs().max() < 1e-6  # its constants are float32
    half = [tensor.bfloat16() for tensor in (features, vector)]
    with torch.autocast("cpu", torch.bfloat16):
        found = UpsampledCosine(8, 32)(*half)
    assert torch.equal(found, UpsampledCosine(8, 32)(*(tensor.float() for tensor in half)))


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("fused", [False, True])
def test_folded_stages_equal_the_published_ones_in_float64(parts: int, fused: bool) -> None:
    model = randomize(build_model(small_config2())).double()
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(256, (1, 3, 64, 64), dtype=torch.uint8, generator=generator)
    ids = torch.randint(200, (2, LENGTH), generator=generator)
    mask = torch.arange(LENGTH) < torch.tensor([[5], [9]])
    with patch.object(torch.Tensor, "float", torch.Tensor.double):
        expected = run_stages(model, image, ids, mask)
        given = {"image": image, "input_ids": ids, "token_mask": mask, **expected}
        for stage, contract in model_contracts(model).items():
            folded = fold_for_inference(model.stage(stage), AttentionChoice(query_parts=parts), fused=fused)
            for name, found in run_stage(folded, contract, given).items():
                assert (found - expected[name]).abs().max() <= 1e-12 * expected[name].abs().max()


@pytest.mark.parametrize("stage", Stage, ids=str)
def test_for_cuda_every_attention_is_one_node(stage: Stage, tmp_path: Path) -> None:
    model, path = randomize(build_model(small_config2())), tmp_path / f"{stage}.onnx"
    contract, module, wanted = model_contracts(model)[stage], model.stage(stage), {}
    for phrases in (1, 3):
        with torch.no_grad():
            wanted[phrases] = as_tuple(module(*stage_inputs(model, stage, phrases)))
    export_graph(fold_for_inference(module, AttentionChoice(), fused=True), contract, path, FUSED_OPSET)
    graph = check_graph(path, contract, FUSED_OPSET).graph
    operators = Counter(node.op_type for node in graph.node)
    attentions = dict(zip(Stage, (1, 1, 26, 6, 7), strict=True))
    assert (operators["Attention"], operators["Softmax"]) == (attentions[stage], 0)
    assert bool(broadcast_products(graph)) == (stage is Stage.ATTN_PROMPTER), "its graph is not recorded"
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for phrases, expected in wanted.items():
        inputs = zip(contract.inputs, stage_inputs(model, stage, phrases), strict=True)
        found = session.run(None, {spec.name: tensor.numpy() for spec, tensor in inputs})
        for one, reference in zip(found, expected, strict=True):
            assert one.shape == tuple(reference.shape)
            assert np.abs(one - reference.numpy()).max() <= TOLERANCE * reference.abs().max().item()


def test_on_cuda_the_prompter_is_not_replayed_because_its_products_broadcast(published: Published) -> None:
    bundle, ids, mask = Bundle.open(published.bundle), np.full((2, LENGTH), 5), np.arange(LENGTH) < [[3], [9]]
    with OnnxRuntimeCudaEngine(bundle, threads=1, device="cpu") as engine:
        for _ in range(3):
            engine.predict(engine.encode_image(random_image(bundle)), engine.encode_text(ids, mask))
        recordings = {stage: len(model.recordings) for stage, model in engine._models.items()}
    assert recordings == dict.fromkeys(Stage, 1) | {Stage.ATTN_PROMPTER: 0, Stage.SAM_ENCODER: 0}


def broadcast_products(graph: onnx.GraphProto) -> set[tuple[int, ...]]:
    """Return the numbers of axes of products in which a batch is broadcast, which a CUDA graph must not contain."""
    axes = {tensor.name: len(tensor.dims) for tensor in graph.initializer}
    axes |= {value.name: len(value.type.tensor_type.shape.dim) for value in (*graph.value_info, *graph.input)}
    products = {tuple(axes[name] for name in node.input) for node in graph.node if node.op_type == "MatMul"}
    return {(left, right) for left, right in products if right != 2 and not left == right == 3}


def test_attention_has_one_form() -> None:
    config = model_config("rsrefseg2")
    assert ExportSettings().resolve(config)[0] == AttentionChoice(query_parts=4)
    assert ExportSettings({}, Target.TENSORRT).resolve(config)[0] == AttentionChoice()
    assert ExportSettings(attention="global=published:8").resolve(config)[0].query_parts == 8
    with pytest.raises(BadInputError, match="one form of attention"):
        ExportSettings(attention="windowed=folded").resolve(config)


def test_upsampling_crops_the_padding() -> None:
    logits = torch.randn(1, 1, 16, 16)
    square = torch.nn.functional.interpolate(logits, (64, 64), mode="bilinear", align_corners=False)
    expected: Any = torch.nn.functional.interpolate(square[..., :43, :], (40, 60), mode="bilinear", align_corners=False)
    found = upsample_logits(logits[0, 0].numpy(), 64, (40, 60), keep_aspect=True)
    assert np.abs(found - expected[0, 0].numpy()).max() < 1e-5
    rows = upsample_logits(logits[0, 0].numpy(), 64, (40, 60), range(7, 33), keep_aspect=True)
    assert np.array_equal(rows, found[7:33])


@pytest.mark.parametrize("folded", [False, True])
def test_half_precision_stays_within_the_limits_of_parity(folded: bool) -> None:
    """Both forms: the audit and the bisection use the published one, the export the folded one."""
    model = randomize(build_model(small_config2()))
    model.attn_prompter.logit_scale.data.fill_(4.6)  # a factor of 100, as trained
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(256, (1, 3, 64, 64), dtype=torch.uint8, generator=generator)
    ids, mask = torch.randint(200, (2, LENGTH), generator=generator), torch.arange(LENGTH) < torch.tensor([[5], [9]])
    given = {"image": image, "input_ids": ids, "token_mask": mask}
    given |= (expected := run_stages(model, **given))
    for stage, contract in model_contracts(model).items():
        module = model.stage(stage)
        if folded:
            module = fold_for_inference(module, AttentionChoice(), fp16=True)
        kept = convert_to_half(stage, module)
        assert "." in kept or stage is Stage.SIGLIP_TEXT, "inputs and outputs are float32"
        assert any(parameter.dtype == torch.float16 for parameter in module.parameters())
        with HalfArithmetic():
            found = run_stage(module, contract, given)
        for name, tensor in found.items():
            assert tensor.dtype == torch.float32
            assert tensor_error(expected[name].numpy(), tensor.numpy()).relative_l2 <= 1e-2


def test_a_precision_plan_names_blocks_of_hiera_and_of_the_prompter() -> None:
    plan = {
        Stage.SAM_ENCODER: {"hiera.blocks.43.attn": "on trial"},
        Stage.ATTN_PROMPTER: {"prompt_queries2_img_attn_layers.1.cross_attn_prompt_img_1": "on trial"},
    }
    ExportSettings(plan).resolve(model_config("rsrefseg2"))
    with pytest.raises(BadInputError, match="nearest names are hiera"):
        ExportSettings({Stage.SAM_ENCODER: {"image_encoder.blocks.3.attn": "x"}}).resolve(model_config("rsrefseg2"))
