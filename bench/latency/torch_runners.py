"""PyTorch runners: the published model in float32 on the CPU, or as fast as PyTorch runs it in float16 on a GPU."""

import contextlib
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.engines.engine import Tensors
from rsrefseg.engines.errors import MissingPartError
from rsrefseg.engines.images.images import network_size

from .runner import Prediction, Runner

if TYPE_CHECKING:
    from torch import nn

TORCH = "torch"
TORCH_RUNNERS = (TORCH, "torch-compile", "torch-cuda", "torch-compile-cuda")


class PublishedModel(Runner):
    """Base of runners for a run's merged model, built from the published modules of segment-anything and transformers.

    Args:
        bundle: bundle whose manifest has the digest of the model.
        run: run folder with the model; default is the latest run.

    Raises:
        MissingPartError: PyTorch is not installed.
    """

    def __init__(self, bundle: Bundle, run: Path | None) -> None:
        super().__init__(bundle)
        if find_spec("torch") is None:
            raise MissingPartError("PyTorch is not installed: pip install 'rsrefseg[train]'")
        import torch

        from rsrefseg.model import model  # noqa: F401 (so that the load time excludes this import)

        self._torch, self._run, self._merged = torch, run, Path()

    def open(self) -> None:
        """Find the run's merged model and verify its digest."""
        from rsrefseg.runs.run import exported_run

        checkpoint = self.bundle.manifest.provenance.checkpoint_sha256
        self._merged = exported_run(self.bundle.root, checkpoint, self._run).merged_path


class TorchRunner(PublishedModel):
    """Runs the model in PyTorch. On a GPU, all tensors stay on the device from the image to the masks.

    On a GPU, weights of layers are float16, norms and softmaxes compute in float32 (autocast), every attention is
    ``scaled_dot_product_attention``, and stages are replayed as CUDA graphs: by ``ReplayedStage``, or by
    ``torch.compile`` in the mode ``max-autotune``.

    Args:
        bundle, run: see ``PublishedModel``.
        name: one of ``TORCH_RUNNERS``; they select ``torch.compile``, and a GPU with half precision.
        device: device to use instead of the one of ``name``, for tests.

    Raises:
        MissingPartError: PyTorch is not installed, or has no GPU.
    """

    def __init__(self, bundle: Bundle, run: Path | None, name: str = TORCH, device: str = "") -> None:
        super().__init__(bundle, run)
        self.name, self._half, self._compiled = name, name.endswith("cuda"), "compile" in name
        self.device = device or ("cuda" if self._half else "cpu")
        if self.device == "cuda" and not self._torch.cuda.is_available():
            raise MissingPartError(f"{name}: torch {self._torch.__version__} finds no CUDA GPU here")
        self._threads_before = self._torch.get_num_threads()
        self._stages: dict[Stage, Any] = {}

    def load(self) -> None:
        """Build the model and read its weights; ``torch.compile`` compiles a stage in its first run."""
        from rsrefseg.checkpoints.model_file import load_model

        self._torch.set_num_threads(self.threads)
        with self.reporting("loading"):
            model = load_model(self._merged)
            copy_weights(model)
            if not self._half:
                restore_layer_norms(model)
            self._stages = {stage: self._prepared(model.stage(stage)) for stage in Stage}
        kind = f"{'torch.compile' if self._compiled else 'eager'} {'FP16 (weights, SDPA)' if self._half else 'FP32'}"
        self.providers = dict.fromkeys(Stage, f"{kind}, {self.device.upper()}")
        self.precisions = dict.fromkeys(Stage, "fp16" if self._half else "fp32")

    def _prepared(self, module: "nn.Module") -> Any:
        module = (half_with_sdpa(module) if self._half else module).to(self.device)
        if self._compiled and self._half:
            return self._torch.compile(module, mode="max-autotune", dynamic=False)
        if self._compiled:
            return self._torch.compile(module)
        return ReplayedStage(module) if self.device == "cuda" else module

    def run(self, stage: Stage, tensors: Mapping[str, Any]) -> Tensors:
        """Run the module of a stage and wait for it."""
        contract = self.bundle.manifest.stages[stage].contract
        with self.reporting(f"stage '{stage.value}'"), self._inference():
            results = self._stages[stage](*(self._on_device(tensors[spec.name]) for spec in contract.inputs))
            results = results if isinstance(results, tuple) else (results,)
            if self.device == "cuda":
                results = tuple(result.clone() for result in results)  # the next replay overwrites them
                self._torch.cuda.synchronize()
        return {spec.name: result for spec, result in zip(contract.outputs, results, strict=True)}

    def finish(self, mask_logits: Any, size: tuple[int, int]) -> Prediction:
        """Upsample with PyTorch, as published."""
        from torch.nn import functional as F

        with self.reporting("upsampling masks"), self._inference():
            logits = mask_logits.float()
            side = self.preprocessing.image_size
            height, width = network_size(size, side, self.preprocessing.keep_aspect)
            square = F.interpolate(logits, (side, side), mode="bilinear", align_corners=False)[..., :height, :width]
            masks = F.interpolate(square, size, mode="bilinear", align_corners=False) > 0
            return Prediction(self.to_host(logits[:, 0]), self.to_host(masks[:, 0]))

    def to_host(self, tensor: Any) -> npt.NDArray[Any]:
        """Return a tensor as an array, without a copy if it is on the host."""
        return np.asarray(tensor.cpu())

    def close(self) -> None:
        """Free the model and restore PyTorch's number of threads."""
        self._stages.clear()
        self._torch.set_num_threads(self._threads_before)

    @contextlib.contextmanager
    def _inference(self) -> Iterator[None]:
        # A recorded graph must not refer to a cache of casts.
        options = {"dtype": self._torch.float16, "enabled": self._half, "cache_enabled": False}
        autocast = self._torch.autocast(self.device, **options)
        with self._torch.inference_mode(), autocast:
            yield

    def _on_device(self, tensor: Any) -> Any:
        return self._torch.from_numpy(tensor).to(self.device) if isinstance(tensor, np.ndarray) else tensor


class ReplayedStage:
    """Records a stage as a CUDA graph for every set of input shapes and replays it. Its results are overwritten."""

    def __init__(self, module: "nn.Module") -> None:
        self._module = module
        self._recordings: dict[tuple[Any, ...], tuple[Any, list[Any], Any]] = {}

    def __call__(self, *inputs: Any) -> Any:
        """Run the stage; returns what the module returns."""
        shapes = tuple(tensor.shape for tensor in inputs)
        if shapes not in self._recordings:
            self._recordings[shapes] = self._record(inputs)
        graph, own, results = self._recordings[shapes]
        for target, source in zip(own, inputs, strict=True):
            target.copy_(source)
        graph.replay()
        return results

    def _record(self, inputs: tuple[Any, ...]) -> tuple[Any, list[Any], Any]:
        from torch import cuda

        own = [tensor.clone() for tensor in inputs]
        stream: Any = cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(cuda.current_stream())
        with cuda.stream(stream):
            for _ in range(3):  # libraries choose algorithms and allocate in their first runs
                self._module(*own)
        cuda.current_stream().wait_stream(stream)
        graph = cuda.CUDAGraph()
        with cuda.graph(graph):
            results = self._module(*own)
        return graph, own, results


def half_with_sdpa(module: "nn.Module") -> "nn.Module":
    """Convert the weights of a stage's layers to float16 and its attention to ``scaled_dot_product_attention``.

    SAM's position bias becomes the mask of its attention; SigLIP's towers and Hiera call that function already.
    """
    from torch import nn

    from rsrefseg.inference.attention import AttentionChoice, AttentionForm
    from rsrefseg.inference.decoder import InferenceDecoder
    from rsrefseg.inference.image_encoder import InferenceImageEncoder
    from rsrefseg.inference.rsrefseg2.prompter import fold_prompter
    from rsrefseg.inference.rsrefseg2.sam2 import InferenceSam2Decoder
    from rsrefseg.model.rsrefseg2.prompter import CascadedPrompter
    from rsrefseg.model.rsrefseg2.sam2 import Sam2Decoder
    from rsrefseg.model.sam import SamDecoder, SamEncoder

    match module:
        case CascadedPrompter():
            fold_prompter(module, fused=True)
        case Sam2Decoder():
            module = InferenceSam2Decoder(module, fused=True)
        case SamDecoder():
            module = InferenceDecoder(module, fused=True)
        case SamEncoder():
            form = AttentionChoice(AttentionForm.ADDITIVE, AttentionForm.ADDITIVE)
            module.set_submodule("image_encoder", InferenceImageEncoder(module.image_encoder, form, fused=True))
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            part.half()
    return module


def copy_weights(module: "nn.Module") -> None:
    """Copy weights from their memory-mapped file into memory.

    The system may drop mapped pages while other runners are measured, and PyTorch's time would include reading them.
    """
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = tensor.data.clone()


def restore_layer_norms(module: "nn.Module") -> None:
    """Replace this project's channel layer norms by those of segment-anything."""
    from segment_anything.modeling.common import LayerNorm2d

    from rsrefseg.model.sam import ChannelLayerNorm

    for name, child in module.named_children():
        if isinstance(child, ChannelLayerNorm):
            original = LayerNorm2d(child.weight.shape[0], child.eps)
            original.weight, original.bias = child.weight, child.bias
            setattr(module, name, original.eval())
        else:
            restore_layer_norms(child)
