"""A checkpoint of the trained part, rebuilt from transformers and peft, converts to a run with equal mask logits."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from msgspec.structs import replace

from rsrefseg.checkpoints.model_file import load_model
from rsrefseg.engines.errors import BadInputError
from rsrefseg.engines.text import Tokenizer
from rsrefseg.model.config import ModelConfig
from rsrefseg.runs.convert import ConvertReport, convert_checkpoint
from rsrefseg.runs.imported_run import rendered_scenes
from rsrefseg.runs.run import Run
from tests.support.aerial_d import AerialD
from tests.support.commands import run_here
from tests.support.small import small_config
from tests.support.towers import write_siglip2
from tests.support.upstream import State, port_sam, with_one, without

pytestmark = pytest.mark.usefixtures("one_thread")

TOLERANCE = 1e-4
# 2 vision layers x 4, 2 text layers x 6 and the text head, 2 SAM blocks x 4 and 2 neck convolutions
ADAPTERS = 8 + 13 + 10


class Public(NamedTuple):
    folder: Path
    model: AerialD

    def convert(self, name: str = "public.pt", out: str = "run", **options: Any) -> ConvertReport:
        bases = {"sam": self.folder / "sam", "siglip": self.folder / "siglip2"}
        return convert_checkpoint(self.folder / name, self.folder / out, **bases | options)

    def error(self, run: Path) -> float:
        """Return the largest difference of mask logits from the rebuild, as a fraction of the largest logit or of 1."""
        model = load_model(Run(run).merged_path)
        tokenizer = Tokenizer(Run(run).tokenizer_path, 64, "longest", model.config.siglip.pad_token_id)
        worst = 0.0
        for scene in rendered_scenes()[:2]:
            tokens = tokenizer.encode([scene.referrals[0].phrase])
            length = int(tokens.token_mask.sum())
            wanted = self.model(scene.image, torch.from_numpy(tokens.input_ids[0, :length]))
            image = torch.from_numpy(model.config.stretch(scene.image))[None]
            with torch.no_grad():
                ids, mask = torch.from_numpy(tokens.input_ids), torch.from_numpy(tokens.token_mask)
                found = model(image, ids, mask).mask_logits[0, 0]
            assert wanted.std() > 1e-3
            worst = max(worst, float((found - wanted).abs().max()) / max(1.0, float(wanted.abs().max())))
        return worst


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Public:
    """Write bases and a checkpoint of rank 4 and alpha 16."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("aerial-d")
    small = small_config()
    sam = port_sam(replace(small, sam=replace(small.sam, decoder_num_heads=8)))
    sam.save_pretrained(folder / "sam")
    model = AerialD(sam, write_siglip2(folder / "siglip2", "so400m-patch14-384"))
    model.save(folder / "public.pt")
    return Public(folder, model)


def test_the_rebuild_has_the_published_names(public: Public) -> None:
    names = public.model.trained().keys()
    assert names >= {
        "backbone.base_model.model.layers.0.attn.qkv.lora_A.default.weight",
        "backbone.base_model.model.neck.conv2.lora_B.default.weight",
        "clip_vision_encoder.base_model.model.encoder.layers.0.self_attn.q_proj.lora_A.default.weight",
        "clip_text_encoder.base_model.model.encoder.layers.1.mlp.fc2.lora_B.default.weight",
        "clip_text_encoder.base_model.model.head.lora_A.default.weight",
        "logit_scale",
        "shared_image_embedding.positional_embedding",
        "prompter_down_channel.conv.bias",
        "prompter_down_channel.norm.running_mean",
        "prompter_down_spatial.2.conv.bias",
    }


def test_the_trained_part_and_its_bases_predict_as_the_rebuild(public: Public) -> None:
    report = public.convert()
    assert (report.profile, report.adapters) == ("aerial-d", ADAPTERS)
    assert public.error(Path(report.run)) <= TOLERANCE
    record = Run(Path(report.run)).read_record()
    config = ModelConfig.from_dict(record["model"])
    assert (config.image_size, config.text_padding, config.siglip.pad_token_id) == (480, "longest", 0)
    assert record["base"]["files"]["sam"]["path"] == str(public.folder / "sam")
    # Every tensor of the file is taken, folded or left out by name.
    assert all(name.startswith("clip_vision_encoder.model.head.") for name in report.dropped)
    assert report.tensors == len(load_model(Run(Path(report.run)).merged_path).state_dict()) - 2


def test_alpha_and_profile_can_be_given(public: Public, capsys: pytest.CaptureFixture[str]) -> None:
    assert public.error(Path(public.convert(out="alpha", lora_alpha=4.0).run)) > TOLERANCE
    given = ("convert", public.folder / "public.pt", "--out", public.folder / "named", "--sam", public.folder / "sam")
    ran = run_here(capsys, *given, "--siglip", public.folder / "siglip2", "--lora-alpha", 16, "--profile", "published")
    assert ran.code == 0, ran.err
    record = json.loads((public.folder / "named" / "run.json").read_text())
    assert ModelConfig.from_dict(record["model"]).preprocessing.profile == "published"


FAULTS: dict[str, tuple[Callable[[State], State], str]] = {
    "a layer less": (without("layers.1.mlp.lin1.lora"), r"no LoRA adapter for 'backbone\.model\.layers\.1\.mlp\.lin1'"),
    "half an adapter": (without("layers.0.mlp.lin1.lora_B"), "adapter without"),
    "no prompter": (without("prompter_down_spatial.2"), r"misses tensor 'prompter_down_spatial\.2"),
    "no statistics": (without("running_mean"), "misses tensor .*running_mean"),
    "surplus": (with_one("prompter_extra.weight", torch.ones(2)), r"unknown tensor 'prompter_extra\.weight'"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_checkpoint_that_is_not_whole_is_refused(public: Public, fault: str) -> None:
    change, message = FAULTS[fault]
    torch.save({"model_state_dict": change(public.model.trained())}, public.folder / "faulty.pt")
    with pytest.raises(BadInputError, match=message):
        public.convert("faulty.pt", out="faulty")
    assert not (public.folder / "faulty").exists()


def test_bases_are_needed_and_go_together(public: Public) -> None:
    with pytest.raises(BadInputError, match=r"only the trained part .* --sam and --siglip"):
        public.convert(out="none", sam=None, siglip=None, tokenizer=public.folder / "siglip2")
    with pytest.raises(BadInputError, match="go together"):
        public.convert(out="none", siglip=None)
    with pytest.raises(BadInputError, match="unknown preprocessing profile 'x'"):
        public.convert(out="none", profile="x")
