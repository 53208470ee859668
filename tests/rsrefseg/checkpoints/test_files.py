"""Published files of SAM and SigLIP fill the towers exactly, or an error names the file."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from rsrefseg.checkpoints.key_matching import Matches, fill
from rsrefseg.checkpoints.public_files import pin_public_files, weights_digest
from rsrefseg.checkpoints.sam_file import match_sam
from rsrefseg.checkpoints.siglip_folder import match_siglip
from rsrefseg.engines.errors import BadInputError
from rsrefseg.model.model import RSRefSeg, build_model
from tests.support import upstream
from tests.support.upstream import State, port_sam, segment_anything_sam, with_one, without

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = upstream.brought_config()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create all files. Read-only."""
    root = tmp_path_factory.mktemp("brought")
    torch.save(segment_anything_sam(CONFIG).state_dict(), root / "sam.pth")
    save_file(segment_anything_sam(CONFIG).state_dict(), root / "sam.safetensors")
    port_sam(CONFIG).save_pretrained(root / "port")
    upstream.write_siglip_folder(root / "siglip", CONFIG)
    return root


def sam_model(path: Path) -> RSRefSeg:
    model = build_model(CONFIG)
    fill(model, match_sam(path, CONFIG, model.state_dict()))
    model.refresh_position_encodings()
    return model


def siglip_matches(path: Path) -> Matches:
    return match_siglip(path, CONFIG, build_model(CONFIG, device="meta").state_dict())


@pytest.mark.parametrize("name", ["sam.pth", "sam.safetensors"])
def test_segment_anything_names_are_taken_as_they_are(folder: Path, name: str) -> None:
    model = sam_model(folder / name).state_dict()
    stages = {"image_encoder": "sam_encoder.", "prompt_encoder": "sam_decoder.", "mask_decoder": "sam_decoder."}
    published = segment_anything_sam(CONFIG).state_dict()
    for theirs, tensor in published.items():
        assert torch.equal(model[stages[theirs.partition(".")[0]] + theirs], tensor), theirs
    ours = [name for name in model if name.startswith("sam_") and name != "sam_decoder.position_encoding"]
    assert len(ours) == len(published)


@pytest.mark.parametrize("name", ["port", "port/model.safetensors"])
@torch.no_grad()
def test_the_hugging_face_port_gives_the_same_sam(folder: Path, name: str) -> None:
    """Run all parts, including those RSRefSeg does not use, so that swapped tensors change an output."""
    model, port = sam_model(folder / name), port_sam(CONFIG)
    generator = torch.Generator().manual_seed(5)
    pixels = torch.randn(1, 3, 64, 64, generator=generator)
    embedding = model.sam_encoder.image_encoder(pixels)
    expected = port.vision_encoder(pixels).last_hidden_state
    assert (embedding - expected).abs().max() < 1e-4 * expected.abs().max()  # float32 sums in another order

    # The prompt encoder, one kind of prompt at a time: our arguments, then theirs.
    points, labels = torch.tensor([[[10.0, 20.0], [30.0, 5.0]]]), torch.tensor([[1, 0]])
    boxes, mask = torch.tensor([[4.0, 8.0, 30.0, 40.0]]), torch.randn(1, 1, 16, 16, generator=generator)
    kinds: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = (
        ({"points": (points, labels)}, {"input_points": points[:, None], "input_labels": labels[:, None]}),
        ({"boxes": boxes}, {"input_boxes": boxes[:, None]}),
        ({"masks": mask}, {"input_masks": mask}),
    )
    for ours, theirs in kinds:
        sparse, dense = model.sam_decoder.prompt_encoder(**dict.fromkeys(("points", "boxes", "masks")) | ours)
        unused = dict.fromkeys(("input_points", "input_labels", "input_boxes", "input_masks"))
        port_sparse, port_dense = port.prompt_encoder(**unused | theirs)
        assert torch.allclose(dense, port_dense, atol=1e-5)
        if port_sparse is not None:
            assert torch.allclose(sparse, port_sparse[0], atol=1e-5)
            prompt_tokens = sparse
    encoding = port.get_image_wide_positional_embeddings()
    assert torch.allclose(model.sam_decoder.position_encoding, encoding, atol=1e-5)
    decoder, position = model.sam_decoder.mask_decoder, model.sam_decoder.position_encoding
    masks, quality = decoder.predict_masks(embedding, position, prompt_tokens, dense)
    arguments = {"sparse_prompt_embeddings": prompt_tokens[None], "dense_prompt_embeddings": dense}
    # The port's decoder norms have another epsilon, which moves logits by some 5e-5 of their maximum.
    for multimask, kept in ((True, slice(1, None)), (False, slice(0, 1))):
        port_masks, port_quality = port.mask_decoder(embedding, encoding, multimask_output=multimask, **arguments)[:2]
        assert torch.allclose(masks[:, kept], port_masks[0], atol=1e-4 * float(masks.abs().max()))
        assert torch.allclose(quality[:, kept], port_quality[0], atol=1e-5)


def test_a_port_with_one_or_both_names_of_its_encoding_is_the_same(folder: Path, tmp_path: Path) -> None:
    state = dict(port_sam(CONFIG).state_dict())
    names = ("shared_image_embedding.positional_embedding", "prompt_encoder.shared_embedding.positional_embedding")
    expected = sam_model(folder / "port").state_dict()
    for left_out in (None, *names):
        path = tmp_path / "one.safetensors"
        save_file({name: tensor.clone() for name, tensor in state.items() if name != left_out}, path)
        found = sam_model(path).state_dict()
        assert all(torch.equal(found[name], expected[name]) for name in expected if name.startswith("sam_"))
    save_file(state | {names[1]: state[names[1]] + 1}, tmp_path / "two.safetensors")
    with pytest.raises(BadInputError, match="differ"):
        sam_model(tmp_path / "two.safetensors")


def test_siglip_is_taken_tensor_for_tensor_and_names_what_it_leaves_out(folder: Path) -> None:
    model = build_model(CONFIG)
    matches = match_siglip(folder / "siglip", CONFIG, model.state_dict())
    fill(model, matches)
    published, ours = upstream.siglip_model(CONFIG).state_dict(), model.state_dict()
    names = {"text_model": "siglip_text", "vision_model": "siglip_vision"}
    for theirs, tensor in published.items():
        tower, _, rest = theirs.partition(".")
        if theirs.startswith("vision_model.head."):
            assert theirs in matches.dropped
        else:
            assert torch.equal(ours[f"{names[tower]}.{rest}" if rest else f"attn_prompter.{theirs}"], tensor), theirs
    assert len(matches.pairs) + len(matches.dropped) == len(published)
    assert len(matches.notes) == 1
    assert "vision_model.head.attention" in matches.notes[0]


def test_the_two_files_are_pinned_and_rebuilt_alike(folder: Path, tmp_path: Path) -> None:
    siglip = Path(shutil.copytree(folder / "siglip", tmp_path / "siglip"))
    base = pin_public_files(folder / "sam.pth", siglip)
    recorded = msgspec.convert(asdict(base), type(base))
    first, second = base.build(CONFIG, seed=3).state_dict(), recorded.build(CONFIG, seed=3)
    assert all(torch.equal(first[name], tensor) for name, tensor in second.state_dict().items())
    other = base.build(CONFIG, seed=4).state_dict()
    different = {name.partition(".")[0] for name in first if not torch.equal(first[name], other[name])}
    assert different == {"attn_prompter"}, "the seed decides the prompter alone"
    state = load_file(siglip / "model.safetensors")
    save_file(state | {"logit_bias": state["logit_bias"] + 1}, siglip / "model.safetensors")
    with pytest.raises(BadInputError, match="SHA-256 differs"):
        base.build(CONFIG, seed=3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_are_taken_into_float32(folder: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    state = {name: tensor.to(dtype) for name, tensor in segment_anything_sam(CONFIG).state_dict().items()}
    torch.save(state, tmp_path / "sam.pth")
    found = sam_model(tmp_path / "sam.pth").state_dict()["sam_encoder.image_encoder.pos_embed"]
    assert found.dtype == torch.float32
    assert torch.equal(found, state["image_encoder.pos_embed"].float())


def save_shards(state: State, folder: Path, index: str, save: Callable[..., None]) -> None:
    shards = {f"{letter}{Path(index).suffix}": sorted(state)[number::2] for number, letter in enumerate("ab")}
    for shard, names in shards.items():
        save({name: state[name] for name in names}, folder / shard)
    home = {name: shard for shard, names in shards.items() for name in names}
    (folder / f"{index}.index.json").write_text(json.dumps({"weight_map": home}))


STORED: dict[str, Callable[[State, Path], None]] = {
    "pickled": lambda state, folder: torch.save(state, folder / "pytorch_model.bin"),
    "sharded": lambda state, folder: save_shards(state, folder, "model.safetensors", save_file),
    "sharded and pickled": lambda state, folder: save_shards(state, folder, "pytorch_model.bin", torch.save),
}


@pytest.mark.parametrize("form", STORED)
def test_sharded_and_pickled_folders_are_the_same(folder: Path, tmp_path: Path, form: str) -> None:
    shutil.copy(folder / "siglip" / "config.json", tmp_path)
    state = load_file(folder / "siglip" / "model.safetensors")
    STORED[form](state, tmp_path)
    expected = {pair.name: pair.tensor for pair in siglip_matches(folder / "siglip").pairs}
    found = {pair.name: pair.tensor for pair in siglip_matches(tmp_path).pairs}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    if form != "pickled":
        digest = weights_digest(tmp_path)
        STORED[form](state | {"logit_bias": state["logit_bias"] + 1}, tmp_path)
        assert weights_digest(tmp_path) != digest
        next(tmp_path.glob("b.*")).unlink()
        with pytest.raises(BadInputError, match=r"lacks 'b\."):
            siglip_matches(tmp_path)


POSITIONS, TOKEN = "image_encoder.pos_embed", "mask_decoder.iou_token.weight"
CHANGES: dict[str, tuple[Callable[[State], State], str]] = {
    "missing": (without("image_encoder.neck.2.weight"), r"misses tensor 'image_encoder\.neck\.2"),
    "surplus": (with_one("image_encoder.extra", torch.ones(1)), r"unknown tensor 'image_encoder\.extra'"),
    "misshapen": (with_one(POSITIONS, torch.zeros(1, 4, 4, 25)), r"pos_embed' has shape \(1, 4, 4, 25\)"),
    "integers": (with_one(TOKEN, torch.zeros(1, 32, dtype=torch.int8)), r"iou_token\.weight' is int8"),
    "not finite": (with_one(TOKEN, torch.full((1, 32), torch.nan)), "not finite"),
    "a repeated number": (with_one(POSITIONS, torch.ones(1).expand(1, 4, 4, 24)), "not an ordinary dense tensor"),
    "nothing of SAM": (without("image_encoder."), "not a SAM checkpoint"),
    "one block less": (without(".blocks.1."), "misses tensor .* more"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_does_not_fit_is_refused_by_name(folder: Path, tmp_path: Path, change: str) -> None:
    spoil, message = CHANGES[change]
    torch.save(spoil(dict(segment_anything_sam(CONFIG).state_dict())), tmp_path / "sam.pth")
    with pytest.raises(BadInputError, match=message):
        sam_model(tmp_path / "sam.pth")


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("vision_config", "num_attention_heads", 4),
        ("vision_config", "patch_size", 4),
        ("vision_config", "hidden_act", "gelu"),
        ("text_config", "num_attention_heads", 1),
        ("text_config", "layer_norm_eps", 1e-5),
        ("text_config", "vocab_size", 64),
    ],
)
def test_a_siglip_of_another_configuration_is_refused(tmp_path: Path, part: str, field: str, value: Any) -> None:
    """Some of these values do not affect tensor shapes."""
    target = upstream.write_siglip_folder(tmp_path / "siglip", CONFIG)
    config = json.loads((target / "config.json").read_text())
    config[part][field] = value
    (target / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadInputError, match=f"{part}.{field} is {value!r}"):
        siglip_matches(target)
