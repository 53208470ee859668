"""The doubles have teeth: what would be wrong results on a GPU breaks a rule here."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.engines.segmenter import Segmenter
from rsrefseg.engines.tensorrt.context import StageContext
from rsrefseg.engines.tensorrt.cuda import Cuda
from rsrefseg.engines.tensorrt.engine import TensorRTEngine
from rsrefseg.engines.tensorrt.phrases import PhraseRunner
from rsrefseg.engines.tensorrt.session import Session
from rsrefseg.engines.tensorrt.store import build_bundle
from tests.support.doubles.cuda_double import RuleBroken
from tests.support.doubles.tensorrt_double import State, doubled
from tests.support.made_bundle import PHRASES, make_bundle

VERSIONS = ("10.9.0.34", "11.4.0.106")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with engines of both majors, which is not to be changed."""
    root = tmp_path_factory.mktemp("built")
    make_bundle(root / "bundle")
    for version in VERSIONS:
        shutil.copytree(root / "bundle", root / version)
        with pytest.MonkeyPatch.context() as patch, doubled(version):
            patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
            build_bundle(root / version)
    return root


@pytest.fixture(params=VERSIONS)
def trt(request: pytest.FixtureRequest, built: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[State]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(built / "cache"))
    with doubled(request.param) as state:
        yield state


@pytest.fixture
def segmenter(trt: State, built: Path) -> Segmenter:
    bundle = Bundle.open(built / trt.version)
    return Segmenter(bundle, TensorRTEngine(bundle, build=False), cached_phrases=0)


def ask(segmenter: Segmenter, count: int = 2, times: int = 1) -> list[np.ndarray]:
    pixels = np.full((40, 60, 3), 90, np.uint8)
    return [segmenter.segment(pixels, PHRASES[:count])[0].mask_logits for _ in range(times)]


def nothing(*_: object) -> None:
    pass


def test_an_encoder_that_nobody_waits_for(segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cuda, "wait_in_stream", nothing)
    with pytest.raises(RuleBroken, match="use the same memory at the same time"):
        ask(segmenter)


def test_two_streams_with_the_same_activation_memory(segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    load = Session.load

    def shared(session: Session, stage: Stage) -> object:
        session._side = session._shared
        return load(session, stage)

    monkeypatch.setattr(Session, "load", shared)
    with pytest.raises(RuleBroken, match=r"siglip_vision and sam_encoder|sam_encoder and siglip_vision"):
        ask(segmenter)


def test_a_picture_written_over_while_it_is_read(segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter.encode_image(np.zeros((40, 60, 3), np.uint8))
    engine = segmenter.engine
    assert isinstance(engine, TensorRTEngine)
    engine._image_read = engine._library.cuda.make_event()  # recorded by nobody
    with pytest.raises(RuleBroken, match="use the same memory"):
        segmenter.encode_image(np.zeros((40, 60, 3), np.uint8))


def test_a_result_that_is_read_before_it_is_there(segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cuda, "wait_for_stream", nothing)
    assert np.isnan(ask(segmenter)[0]).all()


def test_pinned_memory_that_is_used_again_too_early(segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = [np.full((40, 60, 3), shade, np.uint8) for shade in (10, 200)]
    right = [segmenter.segment(picture, PHRASES[:1])[0].mask_logits for picture in pictures]
    monkeypatch.setattr(Cuda, "wait_for_event", nothing)
    encoded = [segmenter.encode_image(picture) for picture in pictures]
    found = [segmenter.segment(one, PHRASES[:1])[0].mask_logits for one in encoded]
    assert not all(np.array_equal(one, other) for one, other in zip(found, right, strict=True))


def test_a_graph_whose_contexts_were_changed(segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Why each number of phrases has contexts of its own."""
    contexts: dict[Stage, StageContext] = {}
    init = PhraseRunner.__init__

    def shared(runner: PhraseRunner, *arguments: object) -> None:
        init(runner, *arguments)  # type: ignore[arg-type]
        for index, context in enumerate(runner._contexts):
            stage = context._contract.stage
            kept = contexts.setdefault(stage, context)
            tensors = segmenter.engine._fixed  # type: ignore[attr-defined]
            kept.bind({"phrases": runner._count}, {name: tensor.address for name, tensor in tensors.items()})
            runner._contexts[index] = kept

    monkeypatch.setattr(PhraseRunner, "__init__", shared)
    ask(segmenter, count=1, times=2)
    ask(segmenter, count=2)
    with pytest.raises(RuleBroken, match="other shapes or addresses"):
        ask(segmenter, count=1)
