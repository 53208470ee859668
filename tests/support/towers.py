"""Small SigLIP 2 folders as transformers and the hub have them: sizes, weights, preprocessor, Gemma's tokenizer."""

import json
import random
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import SiglipConfig, SiglipModel

from rsrefseg.runs.imported_run import rendered_scenes
from tests.support.upstream import PHRASES, randomize

SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
# Layouts of SigLIP 2 at small widths: image side and patch, px, give the published grids divided by 4 or so.
LAYOUTS: dict[str, dict[str, Any]] = {
    "so400m-patch14-384": {"image_size": 56, "patch_size": 14, "hidden_size": 48, "intermediate_size": 90, "heads": 3},
    "so400m-patch16-512": {"image_size": 128, "patch_size": 16, "hidden_size": 48, "intermediate_size": 90, "heads": 3},
    "base-patch16-384": {"image_size": 96, "patch_size": 16, "hidden_size": 32, "intermediate_size": 128, "heads": 2},
    "large-patch16-384": {"image_size": 96, "patch_size": 16, "hidden_size": 40, "intermediate_size": 160, "heads": 5},
}
# The published one: 27 layers, 256,000 tokens.
SO400M = {"image_size": 384, "patch_size": 14, "hidden_size": 1152, "intermediate_size": 4304, "heads": 16}


def gemma_tokenizer(vocab_size: int = 600) -> Tokenizer:
    """Return a byte-pair tokenizer with the steps and special tokens of Gemma's, as SigLIP 2 uses it."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    words = [*PHRASES, *(referral.phrase for scene in rendered_scenes() for referral in scene.referrals)]
    special = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([*words, *(word.title() for word in words)] * 4, trainer)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    end = [("<eos>", SPECIAL.index("<eos>"))]
    tokenizer.post_processor = processors.TemplateProcessing("$A <eos>", "$A <eos> $B <eos>", end)
    return tokenizer


def write_gemma_tokenizer(folder: Path, tokenizer_class: str = "GemmaTokenizer") -> None:
    """Write the tokenizer's files; ``Siglip2Tokenizer`` lower-cases, ``GemmaTokenizer`` does not."""
    gemma_tokenizer().save(str(folder / "tokenizer.json"))
    tokens = {f"{name}_token": f"<{name}>" for name in ("bos", "eos", "pad", "unk")}
    settings = {
        "tokenizer_class": tokenizer_class,
        "add_bos_token": False,
        "add_eos_token": True,
        "do_lower_case": True,
    }
    settings |= {"padding_side": "right", "model_input_names": ["input_ids"], **tokens}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_siglip2(folder: Path, layout: str, depth: int = 2, tokenizer_class: str = "GemmaTokenizer") -> SiglipModel:
    """Write a small folder of this layout and return its model."""
    return write_siglip2_of(folder, LAYOUTS[layout], depth, 600, tokenizer_class)


def write_siglip2_of(
    folder: Path, sizes: dict[str, int], depth: int, vocab_size: int, tokenizer_class: str = "GemmaTokenizer"
) -> SiglipModel:
    """Write a folder of these sizes and return its model."""
    folder.mkdir(parents=True)
    image = {name: sizes[name] for name in ("image_size", "patch_size")}
    tower = {name: sizes[name] for name in ("hidden_size", "intermediate_size")}
    tower |= {"num_attention_heads": sizes["heads"], "num_hidden_layers": depth}
    text = tower | {"vocab_size": vocab_size, "max_position_embeddings": 64, "bos_token_id": None, "eos_token_id": None}
    model = randomize(SiglipModel(SiglipConfig(vision_config=tower | image, text_config=text)), 2)
    model.logit_scale.data.fill_(1.5)
    model.logit_bias.data.fill_(-1.0)
    model.save_pretrained(folder)
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_normalize": True}
    size = {"height": image["image_size"], "width": image["image_size"]}
    (folder / "preprocessor_config.json").write_text(json.dumps(half | {"size": size, "resample": 2}))
    write_gemma_tokenizer(folder, tokenizer_class)
    return model


def odd_texts(count: int) -> list[str]:
    """Return phrases with capitals, punctuation, blanks, other scripts, emoji and bytes of no word."""
    choose = random.Random(0)
    parts = [
        "the",
        "Red",
        "SHIP",
        "left",
        "of",
        " ",
        "  ",
        "\t",
        "\n",
        ",",
        ".",
        "!?",
        "é",
        "É",
        "ß",
        "İ",
        "象",
        "船",
        "🚢",
        "e\u0301",
    ]
    parts += [
        "\u200b",
        "\u00a0",
        "<unk>",
        "<eos>",
        "<0x41>",
        "▁",
        "x²",
        "12",
        "3rd",
        "-",
        "'s",
        "(a)",
        "Ωμ",
        "ﬁeld",
        "\x07",
    ]
    texts = [
        "".join(choose.choice(["", " "]) + part for part in choose.choices(parts, k=choose.randint(1, 9)))
        for _ in range(2 * count)
    ]
    return list(dict.fromkeys(text for text in texts if text.strip()))[:count]
