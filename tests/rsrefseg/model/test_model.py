"""The forward pass equals a plain re-computation or the original library, stage by stage."""

import math
from copy import deepcopy
from typing import Any

import pytest
import torch
from msgspec.structs import replace
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor
from torch.nn import functional as F
from transformers import SiglipTextModel, SiglipVisionModel

from rsrefseg.engines.text import Padding
from rsrefseg.model.config import ModelConfig
from rsrefseg.model.model import ImageFeatures, RSRefSeg, build_model
from rsrefseg.model.stages import model_contracts, run_stages
from tests.support.small import small_config
from tests.support.upstream import randomize, segment_anything_sam, siglip_config

pytestmark = pytest.mark.usefixtures("one_thread")

# Two ways of the same float32 sums: a few dozen roundings of 6e-8 of values around 1.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
END = 1
WORDS_PER_PHRASE = (3, 1, 7)


def awake(**overrides: Any) -> RSRefSeg:
    """Return a model without initial values that hide faults: norms at 1, biases at 0, batch statistics."""
    model = randomize(build_model(small_config(**overrides)), seed=5)
    # Around the turning point of the sigmoid, where it is not flat.
    model.attn_prompter.logit_scale.data.fill_(math.log(10))
    model.attn_prompter.logit_bias.data.fill_(-0.7)
    model.refresh_position_encodings()
    return model


@pytest.fixture(scope="module")
def model() -> RSRefSeg:
    return awake()


def noise_images(config: ModelConfig, count: int = 1) -> Tensor:
    shape = (count, 3, config.sam.image_size, config.sam.image_size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def phrases(config: ModelConfig, words: tuple[int, ...] = WORDS_PER_PHRASE, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return token ids and mask of invented phrases under the config's padding."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.full((len(words), config.siglip.text_length), END)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for row, count in enumerate(words):
        ids[row, :count] = torch.randint(2, config.siglip.vocab_size, (count,), generator=generator)
        mask[row, : count + (config.text_padding == "longest")] = True
    return ids, mask


def original_text_tower(model: RSRefSeg) -> SiglipTextModel:
    """Return the library's text model with our weights."""
    tower = SiglipTextModel(siglip_config(model.config).text_config)
    getattr(tower, "text_model", tower).load_state_dict(model.siglip_text.state_dict())
    return tower.eval()


@torch.no_grad()
def test_siglip_vision_is_the_library_tower_after_its_last_norm(model: RSRefSeg) -> None:
    config = siglip_config(model.config).vision_config
    config.vision_use_head = False
    tower = SiglipVisionModel(config).eval()
    getattr(tower, "vision_model", tower).load_state_dict(model.siglip_vision.state_dict())
    larger = replace(model.config, sam=replace(model.config.sam, image_size=80))
    image = noise_images(larger, count=2)  # 80 px, so that SigLIP's 64 px are a true resize
    pixels = F.interpolate(image / 255, size=(64, 64), mode="bilinear", align_corners=False, antialias=False)
    expected = tower(pixel_values=(pixels - 0.5) / 0.5).last_hidden_state
    torch.testing.assert_close(model.siglip_vision(image), expected, **CLOSE)


@torch.no_grad()
def test_siglip_text_is_the_library_tower_under_its_own_padding(model: RSRefSeg) -> None:
    ids, mask = phrases(model.config)
    expected = original_text_tower(model)(input_ids=ids)
    words, sentence = model.siglip_text(ids, mask)
    torch.testing.assert_close(sentence, expected.pooler_output, **CLOSE)
    torch.testing.assert_close(words[mask], expected.last_hidden_state[mask], **CLOSE)
    assert not words[~mask].any()


@torch.no_grad()
def test_longest_padding_reads_a_phrase_as_if_it_stood_alone() -> None:
    model = awake(text_padding="longest")
    image = noise_images(model.config)
    tower = original_text_tower(model)
    word_counts = (*WORDS_PER_PHRASE, model.config.siglip.text_length - 1)  # the last fills all places
    ids, mask = phrases(model.config, word_counts)
    words, sentence = model.siglip_text(ids, mask)
    clip_features = model.siglip_vision(image)
    sparse, dense = model.attn_prompter(clip_features, words, sentence, mask)
    for row, count in enumerate(word_counts):
        length = count + 1  # with the end token
        alone = tower(input_ids=ids[row : row + 1, :length])
        torch.testing.assert_close(words[row, :length], alone.last_hidden_state[0], **CLOSE)
        torch.testing.assert_close(sentence[row], alone.pooler_output[0], **CLOSE)
        everywhere = torch.ones(1, length, dtype=torch.bool)
        prompts = model.attn_prompter(clip_features, alone.last_hidden_state, alone.pooler_output, everywhere)
        torch.testing.assert_close(sparse[row], prompts[0][0], **CLOSE)
        torch.testing.assert_close(dense[row], prompts[1][0], **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("padding", ["fixed", "longest"])
@pytest.mark.parametrize("dense_prompt", [True, False])
def test_a_mask_depends_on_its_own_image_and_phrase_only(padding: Padding, dense_prompt: bool) -> None:
    model = awake(text_padding=padding, dense_prompt=dense_prompt)
    images = noise_images(model.config, count=2)
    ids, mask = phrases(model.config)
    for index in ([0, 0, 0], [1, 0, 1]):
        together = model(images, ids, mask, torch.tensor(index))
        assert not torch.allclose(together.mask_logits[0], together.mask_logits[2], **CLOSE), "nothing is tested"
        for row, image in enumerate(index):
            alone = model(images[image : image + 1], ids[row : row + 1], mask[row : row + 1])
            torch.testing.assert_close(together.mask_logits[row], alone.mask_logits[0], **CLOSE)
            torch.testing.assert_close(together.mask_prompt[row], alone.mask_prompt[0], **CLOSE)


@torch.no_grad()
def test_prompts_follow_equations_3_and_4(model: RSRefSeg) -> None:
    """Compute word by word with the whole (P, L, T, C) tensor, in double precision."""
    prompter, grid = deepcopy(model.attn_prompter).double(), model.config.siglip.grid_size
    ids, mask = phrases(model.config)
    v = model.siglip_vision(noise_images(model.config))
    words, g = model.siglip_text(ids, mask)
    sparse, dense = model.attn_prompter(v, words, g, mask)

    v, words, g = v.double(), words.double(), g.double()
    scale, bias = prompter.logit_scale.exp(), prompter.logit_bias
    unit = v[0] / v[0].norm(dim=-1, keepdim=True)  # (T, C)
    expected_sparse, expected_dense = [], []
    for row in range(len(ids)):
        chosen = words[row, mask[row]]  # (l, C)
        activation = torch.sigmoid(scale * unit @ (chosen / chosen.norm(dim=-1, keepdim=True)).T + bias)  # (T, l)
        local = (activation.T[:, :, None] * v[0][None]).mean(dim=0)  # mean over words of A_l * v
        logits = scale * unit @ (g[row] / g[row].norm()) + bias  # (T,)
        attended = torch.cat([(v[0] + local) / 2, torch.sigmoid(logits)[:, None] * v[0], v[0]], dim=1)
        attended_grid = attended.T.reshape(1, -1, grid, grid)
        # Their layers are compared where a public checkpoint is converted.
        features = prompter.down_channel(attended_grid) + model.sam_decoder.prompt_encoder.pe_layer((grid, grid))[None]
        expected_sparse.append(prompter.down_spatial(features)[0].flatten(1).T)
        coarse, side = logits.reshape(1, 1, grid, grid), model.config.sam.mask_size
        expected_dense.append(F.interpolate(coarse, size=(side, side), mode="bilinear", align_corners=False)[0])
    torch.testing.assert_close(sparse.double(), torch.stack(expected_sparse), **CLOSE)
    torch.testing.assert_close(dense.double(), torch.stack(expected_dense), **CLOSE)


@torch.no_grad()
def test_sam_encoder_is_the_original_on_normalised_pixels(model: RSRefSeg) -> None:
    original = segment_anything_sam(model.config).image_encoder
    original.load_state_dict(model.sam_encoder.image_encoder.state_dict())
    image = noise_images(model.config, count=2)
    # As published: scaled to [0, 1], then ImageNet's mean and deviation.
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = (image / 255 - mean[:, None, None]) / deviation[:, None, None]
    torch.testing.assert_close(model.sam_encoder(image), original(pixels), **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("dense_prompt", [True, False])
def test_sam_decoder_gives_the_originals_first_mask(dense_prompt: bool) -> None:
    model = awake(dense_prompt=dense_prompt)
    ids, mask = phrases(model.config)
    stages = run_stages(model, noise_images(model.config), ids, mask)
    sam = segment_anything_sam(model.config)
    prompts, decoder = sam.prompt_encoder, sam.mask_decoder
    prompts.load_state_dict(model.sam_decoder.prompt_encoder.state_dict())
    decoder.load_state_dict(model.sam_decoder.mask_decoder.state_dict())
    given = stages["mask_prompt"] if dense_prompt else None
    dense = prompts(points=None, boxes=None, masks=given)[1].expand(len(ids), -1, -1, -1)
    masks, _ = decoder.predict_masks(stages["image_embedding"], prompts.get_dense_pe(), stages["sparse_prompts"], dense)
    torch.testing.assert_close(stages["mask_logits"], masks[:, :1], **CLOSE)
    assert not torch.allclose(masks[:, 0], masks[:, 1], **CLOSE)


def test_no_layer_norm_is_left_that_overflows_in_half_precision() -> None:
    assert not any(isinstance(module, LayerNorm2d) for module in build_model(small_config()).modules())


def test_gradients_of_an_image_with_two_phrases_are_deterministic_on_many_threads(model: RSRefSeg) -> None:
    """Sums in random order would make two runs of one training differ."""
    clip_features = torch.randn(8, 64, 24, requires_grad=True)
    image_embedding = torch.randn(8, 32, 4, 4, requires_grad=True)
    ids, mask = phrases(model.config, words=(3,) * 37)  # 37: a share of the threads ends inside an image's phrases
    index = torch.arange(8).repeat_interleave(5)[:37]
    seen: set[bytes] = set()
    torch.set_num_threads(4)
    for _ in range(20):
        loss = model.segment(ImageFeatures(clip_features, image_embedding), ids, mask, index).mask_logits.square().sum()
        gradients = torch.autograd.grad(loss, (clip_features, image_embedding))
        seen.add(b"".join(gradient.numpy().tobytes() for gradient in gradients))
    assert len(seen) == 1


@torch.no_grad()
def test_stages_composed_by_their_contracts_are_the_model(model: RSRefSeg) -> None:
    image = noise_images(model.config)
    ids, mask = phrases(model.config)
    outputs = run_stages(model, image, ids, mask)
    whole = model(image, ids, mask)
    torch.testing.assert_close(outputs["mask_logits"], whole.mask_logits, rtol=0, atol=0)
    torch.testing.assert_close(outputs["mask_prompt"], whole.mask_prompt, rtol=0, atol=0)
    for contract in model_contracts(model).values():
        for spec in contract.outputs:
            spec.check(outputs[spec.name].numpy())


def test_a_seed_gives_the_same_weights_and_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    first, second, other = (build_model(small_config(), seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
