"""Merging folds every adapter, checks all stage outputs, and writes a plain model or nothing."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from msgspec.structs import replace
from peft import LoraModel

from rsrefseg.checkpoints.model_file import load_model, load_tensors, save_tensors
from rsrefseg.engines.errors import BadInputError, CheckFailedError
from rsrefseg.engines.text import Tokenizer
from rsrefseg.model.config import LoraSettings
from rsrefseg.model.lora import add_lora, fold_lora
from rsrefseg.model.model import RSRefSeg
from rsrefseg.model.stages import run_stages
from rsrefseg.runs import merge as merge_module
from rsrefseg.runs.base import from_file, from_scratch
from rsrefseg.runs.merge import TOLERANCE, compare_outputs, merge
from rsrefseg.runs.reference_inputs import load_reference_inputs
from rsrefseg.runs.run import Run
from tests.support.runs import refused
from tests.support.small import small_config, train_small

TEXT = ["word_features", "sentence_feature"]
OUTPUTS = ["clip_features", *TEXT, "sparse_prompts", "mask_prompt", "image_embedding", "mask_logits"]
ENCODER = "sam_encoder.image_encoder"
ADAPTERS = 19  # 2 towers x 4 projections + the text head + 2 SAM blocks x 4 linears + 2 neck convolutions


@pytest.fixture(scope="module")
def trained(boxes: Path, small_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Create a finished run whose adapters are as large as the weights they adapt."""
    run = train_small(boxes, tmp_path_factory.mktemp("trained") / "run", from_file(small_base)).run
    best = load_tensors(run.best_path)
    generator = torch.Generator().manual_seed(0)
    heavy = {
        name: torch.randn(tensor.shape, generator=generator) * 0.3 if ".lora_B." in name else tensor
        for name, tensor in best.tensors.items()
    }
    save_tensors(run.best_path, heavy, {"step": best.header["step"]})
    return run


@pytest.fixture
def run(trained: Run, tmp_path: Path) -> Run:
    return Run(Path(shutil.copytree(trained.path, tmp_path / "run")))


def outputs(model: RSRefSeg, run: Run) -> dict[str, torch.Tensor]:
    """Return the outputs for the run's first reference input."""
    entry = load_reference_inputs(run.reference_inputs_path)[0]
    tokens = Tokenizer(run.tokenizer_path, length=model.config.siglip.text_length).encode(entry.phrases)
    given = (torch.from_numpy(tokens.input_ids), torch.from_numpy(tokens.token_mask))
    return run_stages(model, entry.image.unsqueeze(0), *given)


def test_merging_proves_itself_and_writes_a_plain_model(run: Run, small_base: Path) -> None:
    result = merge(run)
    assert result.adapters == ADAPTERS
    assert [difference.name for difference in result.differences] == OUTPUTS
    # A float32 sum in another order: a few roundings of 6e-8 through two blocks.
    assert all(difference.relative < 1e-5 for difference in result.differences)
    assert any(difference.max_abs > 0 for difference in result.differences)
    header = load_tensors(run.merged_path).header
    assert header["merge"]["adapters"] == ADAPTERS
    assert [entry["name"] for entry in header["merge"]["differences"]] == OUTPUTS
    assert header["source"]["base"] == run.read_record()["base"]
    assert json.dumps(result.to_dict())
    assert merge(run) == result

    assert load_tensors(run.merged_path).tensors.keys() == load_tensors(small_base).tensors.keys()
    model = load_model(run.merged_path)
    assert model.config == small_config()
    assert not model.training
    # The trained weights as they were: those of the prompter, batch statistics included.
    best = load_tensors(run.best_path).tensors
    state = model.state_dict()
    plain = [name for name in best if ".lora_" not in name]
    assert any(name.endswith("running_mean") for name in plain)
    assert all(torch.equal(state[name], best[name]) for name in plain)


def test_the_merged_model_predicts_as_the_adapted_one(run: Run, small_base: Path) -> None:
    merge(run)
    adapted = load_model(small_base)
    add_lora(adapted, LoraSettings(rank=4, alpha=4))
    adapted.load_state_dict(load_tensors(run.best_path).tensors, strict=False)
    expected = outputs(adapted.eval(), run)
    found = outputs(load_model(run.merged_path), run)
    plain = outputs(load_model(small_base), run)
    for name in OUTPUTS:
        scale = expected[name].abs().max()
        assert (found[name] - expected[name]).abs().max() < 1e-5 * scale
        assert (plain[name] - expected[name]).abs().max() > 1e-3 * scale


@pytest.mark.parametrize("module", ["siglip_text.head", f"{ENCODER}.neck.2", f"{ENCODER}.blocks.1.attn.qkv", None])
def test_a_wrong_fold_is_refused_and_nothing_is_written(run: Run, module: str | None) -> None:
    """Merge with one wrong weight or, without a name, without folding adapters."""
    before = {path.name for path in run.path.iterdir()}

    def fold(tuner: LoraModel) -> RSRefSeg:
        if module is None:
            return tuner.unload()
        model = fold_lora(tuner)
        model.get_submodule(module).weight.data.view(-1)[0] += 0.5
        return model

    with patch.object(merge_module, "fold_lora", fold), pytest.raises(CheckFailedError) as refusal:
        merge(run)
    assert refusal.value.exit_code == 1
    assert {path.name for path in run.path.iterdir()} == before


def test_adapters_that_are_not_finite_are_refused(run: Run) -> None:
    best = load_tensors(run.best_path)
    name = next(name for name in best.tensors if ".lora_A." in name)
    best.tensors[name][0, 0] = math.nan
    save_tensors(run.best_path, best.tensors, {"step": 10})
    with pytest.raises((BadInputError, CheckFailedError)):
        merge(run)
    assert not run.merged_path.exists()


def test_a_run_from_scratch_merges_without_adapters(boxes: Path, tmp_path: Path) -> None:
    run = train_small(boxes, tmp_path / "run", from_scratch(), lora=None, learning_rate=1e-3).run
    result = merge(run)
    assert result.adapters == 0
    assert {difference.max_abs for difference in result.differences} == {0.0}
    best, state = load_tensors(run.best_path).tensors, load_model(run.merged_path).state_dict()
    assert all(torch.equal(state[name], best[name]) for name in best)


def test_a_merged_model_is_a_base_for_the_next_training(run: Run, boxes: Path, tmp_path: Path) -> None:
    merge(run)
    second = train_small(boxes, tmp_path / "second", from_file(run.merged_path), epochs=1).run
    assert merge(second).adapters == ADAPTERS
    assert (second.path / "tokenizer.json").read_bytes() == run.tokenizer_path.read_bytes()


def change_base(run: Run, **fields: str) -> None:
    record = run.read_record()
    record["base"] |= fields
    run.write_record(record)


@pytest.mark.parametrize(
    ("damage", "fact"),
    [
        (lambda run: run.best_path.unlink(), "no trained weights"),
        (lambda run: run.best_path.write_bytes(run.best_path.read_bytes()[:-10]), "best.safetensors"),
        (lambda run: run.record_path.unlink(), "run.json"),
        (lambda run: shutil.copy(run.best_path, run.reference_inputs_path), "reference_inputs.safetensors"),
        (lambda run: run.tokenizer_path.unlink(), "tokenizer.json"),
        (lambda run: change_base(run, sha256="0" * 64), "SHA-256"),
        (lambda run: change_base(run, kind="rumour"), "rumour"),
        (lambda run: change_base(run, path="gone.safetensors"), "gone.safetensors"),
    ],
)
def test_an_incomplete_run_is_refused_by_name(run: Run, damage: Callable[[Run], None], fact: str) -> None:
    damage(run)
    with refused(fact):
        merge(run)
    assert not run.merged_path.exists()


def test_differences_are_of_the_largest_value_and_count_what_is_no_number() -> None:
    before = [{"a": torch.tensor([1.0, -4.0])}, {"a": torch.tensor([2.0, 2.0])}]
    after = [{"a": torch.tensor([1.0, -4.0])}, {"a": torch.tensor([2.0, 1.0])}]
    (difference,) = compare_outputs(before, after)
    assert (difference.max_abs, difference.relative) == (1.0, 0.25)
    after[0]["a"][0] = math.nan
    (difference,) = compare_outputs(before, after)
    assert not difference.relative <= TOLERANCE


def test_a_base_without_a_digest_is_built(small_base: Path) -> None:
    assert replace(from_file(small_base), sha256=None).build(small_config(), seed=0).config == small_config()
