"""Model files load the saved model or raise a one-line error."""

from pathlib import Path
from typing import Any

import pytest
import torch

from rsrefseg.checkpoints.model_file import load_model, load_tensors, save_model, save_tensors
from rsrefseg.model.model import build_model
from tests.support.runs import refused
from tests.support.small import small_config

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_model_file_gives_the_model_back(tmp_path: Path) -> None:
    model = build_model(small_config(), seed=4)
    save_model(tmp_path / "model.safetensors", model, note="kept")
    loaded = load_model(tmp_path / "model.safetensors")
    assert loaded.config == model.config
    state = loaded.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert load_tensors(tmp_path / "model.safetensors").header["note"] == "kept"


def test_a_narrowed_model_file_loads_in_float32(tmp_path: Path) -> None:
    model = build_model(small_config(), seed=4)
    save_model(tmp_path / "half.safetensors", model, dtype=torch.float16)
    assert load_tensors(tmp_path / "half.safetensors").tensors["siglip_text.head.weight"].dtype == torch.float16
    for name, tensor in load_model(tmp_path / "half.safetensors").state_dict().items():
        assert tensor.dtype == model.state_dict()[name].dtype
        torch.testing.assert_close(tensor, model.state_dict()[name], rtol=1e-3, atol=1e-6)


CONFIG = {"config": small_config().to_dict()}


@pytest.mark.parametrize(
    ("tensors", "header", "fact"),
    [
        (None, CONFIG, "misses tensor"),
        ({"extra": torch.ones(1)}, CONFIG, "extra"),
        ({"siglip_text.head.bias": torch.ones(3)}, CONFIG, "siglip_text.head.bias' has shape (3,)"),
        ({}, {}, "part of a model"),
        ({}, {"config": {"preset": "small"}}, "configuration"),
        ({}, {"schema_version": 9}, "schema version 9"),
        ({}, {"format": "other"}, "rsrefseg convert"),
    ],
)
def test_what_is_no_model_file_is_refused(tmp_path: Path, tensors: Any, header: dict[str, Any], fact: str) -> None:
    state = {"x": torch.ones(1)} if tensors is None else build_model(small_config()).state_dict() | tensors
    save_tensors(tmp_path / "model.safetensors", state, header)
    with refused(fact):
        load_model(tmp_path / "model.safetensors")
