"""Training loop with one optimizer, device placement by accelerate, and exact resuming."""

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor

from rsrefseg.engines.errors import BadInputError, RSRefSegError

from ..checkpoints.model_file import save_tensors
from ..evaluation.metrics import MetricsResult
from ..model.lora import ParameterCounts, trainable_parameters
from ..model.model import RSRefSeg
from ..runs.run import Run
from ..runs.trained import trained_state
from .batch_norm import count_phrases, share_batch_norms
from .batches import Batch, BatchLoader, EpochBatches, TrainingBatches
from .checkpointing import checkpoint_blocks
from .compiling import compile_blocks
from .config import Precision, TrainConfig
from .data import TrainingData
from .losses import segmentation_loss
from .metrics_log import MetricsLog
from .processes import this_process
from .schedule import WarmupCosine
from .state import Position, load_training_state, save_training_state
from .validation import validate


@dataclass(frozen=True, slots=True)
class StepReport:
    """Progress after an optimizer step; ``loss`` is that of the step."""

    epoch: int
    step: int
    total_steps: int
    loss: float
    images_per_s: float


@dataclass(frozen=True, slots=True)
class Watcher:
    """Callbacks of a training: before the first step, after each step, after each validation, and for notes."""

    on_start: Callable[[ParameterCounts, TrainConfig], None] = lambda counts, config: None
    on_step: Callable[[StepReport], None] = lambda report: None
    on_validation: Callable[[int, MetricsResult], None] = lambda epoch, result: None
    on_note: Callable[[str], None] = lambda line: None


class Trainer:
    """Trains the parameters of ``model`` with ``requires_grad`` and writes the run folder.

    A step depends only on the weights, the optimizer moments and its position: seed, epoch and batch determine the
    batch and the random numbers of dropout. A checkpoint of weights, moments and position therefore resumes exactly.

    A step minimises the mean loss over all phrases of its effective batch: ``batch_size`` images times processes times
    ``gradient_accumulation``. The images, phrases and weights of phrases in a step depend only on this product. Two
    things depend on its factors: batch norm computes statistics over one forward pass on all processes
    (``SharedBatchNorm``), but not over accumulated batches; and each process draws its dropout from a different seed.
    """

    def __init__(self, model: RSRefSeg, config: TrainConfig, data: TrainingData, run: Run, watcher: Watcher) -> None:
        self.config, self.data, self.run = config, data, run
        mixed_precision = _mixed_precision(config.precision)
        AcceleratorState._reset_state()  # otherwise a second training in one process keeps the first precision
        self.accelerator = Accelerator(mixed_precision=mixed_precision)
        self.is_main = self.accelerator.is_main_process
        self.watcher = watcher if self.is_main else Watcher()
        self.batches = TrainingBatches(data, model.config, config.phrases_per_image, config.seed)
        place = self.accelerator.process_index, self.accelerator.num_processes
        self.sampler = EpochBatches(len(data.groups), config.batch_size, config.seed, *place, data.shares)
        on_cuda = self.accelerator.device.type == "cuda"
        self.loader = BatchLoader(self.batches, self.sampler, config.workers, pin_memory=on_cuda)
        self.plain_model = model.to(self.accelerator.device)
        share_batch_norms(model)
        if config.compile:
            compile_blocks(model)
        if config.gradient_checkpointing:
            checkpoint_blocks(model)
        optimizer = torch.optim.AdamW(
            trainable_parameters(model).values(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.model = self.accelerator.prepare_model(model)
        self.optimizer = self.accelerator.prepare_optimizer(optimizer)
        steps_per_epoch = -(-len(self.sampler) // config.gradient_accumulation)
        self.total_steps = steps_per_epoch * config.epochs
        warmup_steps = round(config.warmup_epochs * steps_per_epoch)
        self.schedule = WarmupCosine(warmup_steps, self.total_steps, config.warmup_start, config.final_share)
        self.position = Position()

    def train(self, resume: bool) -> Position:
        """Train to the last epoch and return the position; ``resume`` continues from ``last.safetensors`` if it exists.

        Raises:
            RSRefSegError: data cannot be read, the disk is full, memory runs out, or the loss is no longer finite.
        """
        if resume and self.run.last_path.exists():
            self._restore()
        log = MetricsLog(self.run.metrics_path, self.position) if self.is_main else None
        self.plain_model.train()
        try:
            for epoch in range(self.position.epoch, self.config.epochs):
                self._train_epoch(epoch, log)
                self._finish_epoch(epoch, log)
        except torch.OutOfMemoryError as error:
            raise RSRefSegError("the device ran out of memory: lower --batch-size or --phrases-per-image") from error
        return self.position

    def _train_epoch(self, epoch: int, log: MetricsLog | None) -> None:
        self.sampler.epoch, self.sampler.first_batch = epoch, self.position.batch
        started, images = time.perf_counter(), 0
        losses: list[Tensor] = []
        for batch_index, batch in enumerate(self.loader, start=self.position.batch):
            first = batch_index - batch_index % self.config.gradient_accumulation
            rounds = range(first, min(first + self.config.gradient_accumulation, len(self.sampler)))
            drawn = self.sampler.drawn(rounds)
            completes_step = batch_index + 1 == rounds.stop
            counted = self.sampler.counts(batch_index)
            share = len(batch.truth) / self.batches.count_phrases(drawn) if counted else 0.0
            self._seed(epoch, batch_index)
            losses.append(self._add_gradients(batch.to(self.accelerator.device), share, completes_step))
            if not completes_step:
                continue
            loss = self._whole_loss(losses)
            learning_rate, skipped = self._step()
            self.position = replace(self.position, epoch=epoch, batch=rounds.stop, step=self.position.step + 1)
            losses, images = [], images + len(drawn)
            if log is not None:
                note = {"skipped": True} if skipped else {}
                log.write(step=self.position.step, epoch=epoch, loss=loss, learning_rate=learning_rate, **note)
            speed = images / (time.perf_counter() - started)
            self.watcher.on_step(StepReport(epoch, self.position.step, self.total_steps, loss, speed))
            if self.position.step % self.config.checkpoint_every_steps == 0:
                self._checkpoint()

    def _seed(self, epoch: int, batch_index: int) -> None:
        """Seed dropout for a batch, with a different seed in each process."""
        place = [self.config.seed, epoch, batch_index, self.accelerator.process_index]
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0]))

    def _add_gradients(self, batch: Batch, share: float, completes_step: bool) -> Tensor:
        """Run forward and backward; processes exchange gradients only in the batch that ``completes_step``.

        Returns:
            The batch's part of the step's loss, weighted by its ``share`` of the phrases; a scalar on the device.
        """
        count_phrases(self.plain_model, share > 0)
        with nullcontext() if completes_step else self.accelerator.no_sync(self.model):
            with self.accelerator.autocast():
                prediction = self.model(batch.image, batch.input_ids, batch.token_mask, batch.image_index)
            prediction = type(prediction)(*(tensor.float() for tensor in prediction))
            loss = share * segmentation_loss(prediction, batch.truth, self.config.loss)
            # Processes average their gradients instead of adding them.
            self.accelerator.backward(loss * self.accelerator.num_processes)
        return loss.detach()

    def _whole_loss(self, losses: list[Tensor]) -> float:
        """Return the loss of a step, equal in all processes, so that all of them stop if it is not finite."""
        loss = float(self.accelerator.reduce(torch.stack(losses).sum(), reduction="sum"))
        if not math.isfinite(loss):
            raise RSRefSegError(
                f"the loss is no longer finite after {self.position.step} steps: start again in another --out, "
                "with a lower --learning-rate or --precision fp32"
            )
        return loss

    def _step(self) -> tuple[float, bool]:
        """Run an optimizer step on the accumulated gradients.

        Returns:
            The learning rate, and whether the step was skipped because gradients overflowed in float16. The schedule
            and resuming count skipped steps too.
        """
        learning_rate = self.config.learning_rate * self.schedule(self.position.step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        if self.config.max_grad_norm is not None:
            self.accelerator.clip_grad_norm_(trainable_parameters(self.model).values(), self.config.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return learning_rate, self.optimizer.step_was_skipped

    def _finish_epoch(self, epoch: int, log: MetricsLog | None) -> None:
        self.position = replace(self.position, epoch=epoch + 1, batch=0)
        last = epoch + 1 == self.config.epochs
        if self.data.validation and (last or (epoch + 1) % self.config.validate_every_epochs == 0):
            self._validate(epoch, log)
        elif last:
            self._save_best()
        self._checkpoint()

    def _validate(self, epoch: int, log: MetricsLog | None) -> None:
        # Compiling for the shapes of single images takes longer than it saves.
        eager = torch.compiler.set_stance("force_eager") if self.config.compile else nullcontext()
        with self.accelerator.autocast(), eager:
            result = validate(self.plain_model, self.data)
        if log is not None:
            log.write(step=self.position.step, epoch=epoch, validation=result.to_dict())
        self.watcher.on_validation(epoch, result)
        if result.gIoU > self.position.best_giou:
            self.position = replace(self.position, best_giou=result.gIoU)
            self._save_best()

    def _save_best(self) -> None:
        if self.is_main:
            save_tensors(self.run.best_path, trained_state(self.plain_model), {"step": self.position.step})

    def _checkpoint(self) -> None:
        if self.is_main:
            scaler = self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else None
            optimizer = self.optimizer.optimizer
            save_training_state(self.run.last_path, self.plain_model, optimizer, self.position, scaler)

    def _restore(self) -> None:
        self.position, scaler = load_training_state(self.run.last_path, self.plain_model, self.optimizer.optimizer)
        if scaler is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(scaler)


def _mixed_precision(precision: Precision) -> str:
    """Return accelerate's name of a precision; ``auto`` depends on the device.

    Raises:
        BadInputError: the device does not support the precision.
    """
    on_cuda = this_process().device.type == "cuda"
    if precision is Precision.FP16 and not on_cuda:
        raise BadInputError("--precision fp16 needs a CUDA device: use auto, fp32 or bf16")
    if precision is Precision.AUTO:
        # Devices that only emulate bfloat16 are slower in it.
        if on_cuda:
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return "bf16" if native else "no"
    return "no" if precision is Precision.FP32 else precision.value
