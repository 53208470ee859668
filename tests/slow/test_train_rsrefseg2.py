"""The tiny RSRefSeg 2 learns from rendered scenes within minutes."""

from pathlib import Path
from statistics import mean

import pytest

from rsrefseg.data.formats import open_dataset
from rsrefseg.engines.text import Tokenizer
from rsrefseg.evaluation.evaluate import predict_with
from rsrefseg.evaluation.predictions import predict_samples, score
from rsrefseg.model.config import model_config
from rsrefseg.model.model import build_model
from rsrefseg.runs.run import Run
from rsrefseg.synth import Domain, synthesize
from rsrefseg.train.command import run_training
from rsrefseg.train.metrics_log import read_metrics

pytestmark = pytest.mark.usefixtures("one_thread")

PRESET = "rsrefseg2-tiny"
SETTINGS = {"preset": PRESET, "from_scratch": True, "epochs": 5, "batch_size": 4, "validate_every_epochs": 5}


def test_a_short_training_beats_the_untrained_model(tmp_path: Path) -> None:
    scenes, run = tmp_path / "scenes", Run(tmp_path / "run")
    synthesize(scenes, domain=Domain.A, train=48, val=8, test=0, max_referrals=4)
    result = run_training({"path": [scenes], **SETTINGS}, out=run.path)
    losses = [entry["loss"] for entry in read_metrics(run.metrics_path) if "loss" in entry]
    assert mean(losses[-6:]) < 0.7 * mean(losses[:6])

    samples = open_dataset(scenes).split("val")
    untrained = predict_with(build_model(model_config(PRESET)), Tokenizer(run.tokenizer_path))
    before = score(predict_samples(untrained, samples)).gIoU
    assert result is not None
    assert result.best_giou is not None
    assert result.best_giou >= before + 0.05
