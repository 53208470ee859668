"""Sizes, normalisation and tokenizer of a tower follow its files; a SigLIP 2 encodes as transformers' own does."""

import json
from pathlib import Path

import pytest
import torch
from msgspec.structs import replace
from transformers import AutoTokenizer

from rsrefseg.checkpoints.key_matching import fill
from rsrefseg.checkpoints.public_files import fit_config
from rsrefseg.checkpoints.sam_file import match_sam, read_sam
from rsrefseg.checkpoints.siglip_folder import match_siglip, read_siglip
from rsrefseg.checkpoints.tokenizer_file import tokenizer_bytes
from rsrefseg.engines.errors import BadInputError
from rsrefseg.engines.text import Tokenizer
from rsrefseg.model.config import ModelConfig, Preset, SamConfig, model_config
from rsrefseg.model.model import build_model
from tests.support.commands import run_here
from tests.support.towers import LAYOUTS, odd_texts, write_gemma_tokenizer, write_siglip2
from tests.support.upstream import brought_config, port_sam, segment_anything_sam

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = model_config(Preset.TINY)


def config_of(folder: Path, sam: SamConfig = TINY.sam) -> ModelConfig:
    return replace(TINY, siglip=read_siglip(folder), sam=sam)


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_both_towers_of_siglip_2_encode_as_in_transformers(tmp_path: Path, layout: str) -> None:
    published = write_siglip2(tmp_path / "siglip2", layout)
    config = config_of(tmp_path / "siglip2")
    assert (config.siglip.vocab_size, config.siglip.text_length, config.siglip.pad_token_id) == (600, 64, 0)
    model = build_model(config)
    fill(model, match_siglip(tmp_path / "siglip2", config, model.state_dict()))
    image = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    size = (config.siglip.image_size,) * 2
    pixels = torch.nn.functional.interpolate((image / 255.0 - 0.5) / 0.5, size, mode="bilinear", align_corners=False)
    wanted = published.vision_model(pixels).last_hidden_state
    assert (model.siglip_vision(image) - wanted).abs().max() <= 1e-5 * wanted.abs().max()

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "siglip2")
    (tmp_path / "tokenizer.json").write_bytes(tokenizer_bytes(tmp_path / "siglip2", config))
    for padding, options in (("fixed", {"padding": "max_length", "max_length": 64}), ("longest", {"padding": True})):
        stage = build_model(replace(config, text_padding=padding)).siglip_text
        stage.load_state_dict(model.siglip_text.state_dict())
        tokens = Tokenizer(tmp_path / "tokenizer.json", 64, padding, config.siglip.pad_token_id).encode(["the Red box"])
        words, sentence = stage(torch.from_numpy(tokens.input_ids), torch.from_numpy(tokens.token_mask))
        ids = tokenizer(["the Red box"], return_tensors="pt", **options)["input_ids"]
        text = published.text_model(ids)
        kept = torch.from_numpy(tokens.token_mask[0][: ids.shape[1]])
        assert (sentence - text.pooler_output).abs().max() <= 1e-5 * text.pooler_output.abs().max()
        hidden = text.last_hidden_state[0][kept]
        assert (words[0, : ids.shape[1]][kept] - hidden).abs().max() <= 1e-5 * hidden.abs().max()


@pytest.mark.parametrize("tokenizer_class", ["GemmaTokenizer", "Siglip2Tokenizer"])
def test_odd_texts_have_the_tokens_of_transformers(tmp_path: Path, tokenizer_class: str) -> None:
    write_siglip2(tmp_path / "siglip2", "base-patch16-384", depth=1, tokenizer_class=tokenizer_class)
    config = config_of(tmp_path / "siglip2")
    (tmp_path / "tokenizer.json").write_bytes(tokenizer_bytes(tmp_path / "siglip2", config))
    ours = Tokenizer(tmp_path / "tokenizer.json", 64, "longest", 0)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "siglip2")
    texts = odd_texts(2000)
    assert len(texts) == 2000
    for text, ids in zip(texts, theirs(texts)["input_ids"], strict=True):
        assert ours._tokenizer.encode(text).ids == ids, text
    small, large = ours.encode(["the red ship"]), ours.encode(["The RED Ship"])
    assert (small.input_ids == large.input_ids).all() == (tokenizer_class == "Siglip2Tokenizer")
    assert small.input_ids[0, -1] == 0


def test_the_tokenizer_of_a_run_keeps_its_padding(tmp_path: Path) -> None:
    """A copy without ``tokenizer_config.json`` reads alike."""
    write_siglip2(tmp_path / "siglip2", "base-patch16-384", depth=1)
    config = config_of(tmp_path / "siglip2")
    content = tokenizer_bytes(tmp_path / "siglip2", config)
    (tmp_path / "tokenizer.json").write_bytes(content)
    assert tokenizer_bytes(tmp_path / "tokenizer.json", config) == content
    with pytest.raises(BadInputError, match="pads a phrase with token 0"):
        tokenizer_bytes(tmp_path / "tokenizer.json", TINY_WORDS)


TINY_WORDS = replace(TINY, siglip=replace(TINY.siglip, vocab_size=600))


@pytest.mark.parametrize("name", ["sam.pth", "port"])
def test_the_sizes_of_a_sam_follow_its_tensors(tmp_path: Path, name: str) -> None:
    config = brought_config()
    torch.save(segment_anything_sam(config).state_dict(), tmp_path / "sam.pth")
    port_sam(config).save_pretrained(tmp_path / "port")
    assert read_sam(tmp_path / name, config.sam) == config.sam
    assert read_sam(tmp_path / name, TINY.sam) == replace(config.sam, decoder_num_heads=8)
    match_sam(tmp_path / name, config, build_model(config, device="meta").state_dict())


@pytest.mark.parametrize(
    ("preset", "width", "depth", "heads"), [("b", 768, 12, 12), ("l", 1024, 24, 16), (None, 1280, 32, 16)]
)
def test_vit_b_l_and_h_are_read_from_their_shapes(
    monkeypatch: pytest.MonkeyPatch, preset: str | None, width: int, depth: int, heads: int
) -> None:
    blocks = (5, 11, 17, 23) if preset == "l" else tuple(range(depth // 4 - 1, depth, depth // 4))
    sam = SamConfig(1024, width, depth=depth, num_heads=heads, global_attn_indexes=blocks)
    config = replace(model_config(Preset.B), sam=sam)
    state = build_model(config, device="meta").state_dict()
    published = {name.partition(".")[2]: tensor for name, tensor in state.items() if name.startswith("sam_")}
    monkeypatch.setattr("rsrefseg.checkpoints.sam_file.read_weights", lambda path: published)
    assert read_sam(Path("sam.pth"), TINY.sam) == sam
    if preset is not None:
        assert model_config(preset).sam == sam


def test_sizes_that_are_a_preset_have_its_name(tmp_path: Path) -> None:
    config = brought_config()
    torch.save(segment_anything_sam(config).state_dict(), tmp_path / "sam.pth")
    write_siglip2(tmp_path / "siglip2", "base-patch16-384", depth=1)
    fitted = fit_config(TINY, tmp_path / "sam.pth", tmp_path / "siglip2")
    assert fitted.preset == "custom"
    assert fitted.preprocessing.profile == "published"
    assert fit_config(fitted, tmp_path / "sam.pth", tmp_path / "siglip2") == fitted
    preprocessor = tmp_path / "siglip2" / "preprocessor_config.json"
    preprocessor.write_text(json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 2]}))
    own = fit_config(TINY, tmp_path / "sam.pth", tmp_path / "siglip2").preprocessing
    assert (own.profile, own.siglip_mean, own.siglip_std) == ("own", (0.1, 0.2, 0.3), (1.0, 1.0, 2.0))
    preprocessor.write_text(json.dumps({"image_mean": [0.1], "image_std": [1, 1, 0]}))
    with pytest.raises(BadInputError, match="image_mean and image_std"):
        fit_config(TINY, tmp_path / "sam.pth", tmp_path / "siglip2")


def test_training_takes_the_sizes_of_the_files(
    tmp_path: Path, boxes: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = brought_config()
    torch.save(segment_anything_sam(config).state_dict(), "sam.pth")
    write_siglip2(tmp_path / "siglip2", "so400m-patch14-384", depth=1)
    bases = ("--sam", "sam.pth", "--siglip", "siglip2")
    given = ("train", "--data", boxes, "--epochs", "1", "--warmup-epochs", "0", "--precision", "fp32", "--out", "run")
    ran = run_here(capsys, *given, *bases, "--profile", "aerial-d")
    assert ran.code == 0, ran.err
    recorded = ModelConfig.from_dict(json.loads(Path("run/run.json").read_text())["model"])
    assert (recorded.preset, recorded.preprocessing.profile, recorded.image_size) == ("custom", "aerial-d", 480)
    assert recorded.siglip == read_siglip(tmp_path / "siglip2")
    assert recorded.sam.embed_dim == config.sam.embed_dim
    assert run_here(capsys, *given, "--resume").code == 0
    other = run_here(capsys, *given, "--resume", "--profile", "published")
    assert other.code == 2
    assert "was started with profile aerial-d" in other.err
    assert run_here(capsys, "merge", "run").code == 0
    named = run_here(capsys, *given[:-1], "named", *bases, "--preset", "b")
    assert named.code == 2
    assert "SAM for preset 'b'" in named.err


def test_a_tokenizer_that_lower_cases_says_so_itself(tmp_path: Path) -> None:
    write_gemma_tokenizer(tmp_path, "Siglip2Tokenizer")
    config = replace(TINY, siglip=replace(TINY.siglip, vocab_size=600, pad_token_id=0))
    document = json.loads(tokenizer_bytes(tmp_path, config))
    assert document["normalizer"]["normalizers"][0] == {"type": "Lowercase"}
    assert document["padding"]["pad_id"] == 0
