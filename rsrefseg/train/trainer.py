"""The training loop: one optimizer, any device through accelerate, exact resuming."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from engines.errors import BadInputError, RSRefSegError
from rsrefseg.checkpoint import save_tensors
from rsrefseg.evaluate import evaluate
from rsrefseg.lora import trainable_parameters
from rsrefseg.metrics import MetricsResult
from rsrefseg.model import RSRefSeg
from rsrefseg.train.batches import Batch, EpochBatches, TrainingBatches, TrainingImages
from rsrefseg.train.config import Precision, TrainConfig
from rsrefseg.train.losses import segmentation_loss
from rsrefseg.train.metrics_log import MetricsLog
from rsrefseg.train.run import Run
from rsrefseg.train.schedule import WarmupCosine
from rsrefseg.train.setup import TrainingData
from rsrefseg.train.state import Position, load_training_state, save_training_state, trained_state


@dataclass(frozen=True, slots=True)
class StepReport:
    """One optimizer step, for whoever shows progress."""

    epoch: int
    step: int
    total_steps: int
    loss: float
    images_per_s: float


@dataclass(frozen=True, slots=True)
class Watcher:
    """Whom to tell: after each optimizer step, after each validation, and of what a person should know (one line)."""

    on_step: Callable[[StepReport], None] = lambda report: None
    on_validation: Callable[[int, MetricsResult], None] = lambda epoch, result: None
    on_note: Callable[[str], None] = lambda line: None


class Trainer:
    """Trains ``model`` (already marked with what is trained) and keeps the run folder.

    A step's result depends on the weights, the moments and the step's place in training, nothing else: batches and the
    random numbers of dropout follow from seed, epoch and batch. So a checkpoint of weights, moments and place is all
    that exact resuming needs. ``batch_size`` is that of one process.
    """

    def __init__(self, model: RSRefSeg, config: TrainConfig, data: TrainingData, run: Run, watcher: Watcher) -> None:
        self.config, self.data, self.run = config, data, run
        mixed_precision = _mixed_precision(config.precision)
        AcceleratorState._reset_state()  # else a second training in one process is bound to the precision of the first
        self.accelerator = Accelerator(
            mixed_precision=mixed_precision, gradient_accumulation_steps=config.gradient_accumulation
        )
        self.watcher = watcher if self.accelerator.is_main_process else Watcher()
        images = TrainingImages(
            data.train_groups,
            model.config.sam.image_size,
            config.phrases_per_image,
            config.seed,
            data.on_size_mismatch,
        )
        self.sampler = EpochBatches(
            len(images),
            config.batch_size,
            config.seed,
            self.accelerator.process_index,
            self.accelerator.num_processes,
        )
        self.batches = TrainingBatches(images, self.sampler, data.tokenizer, config.workers)
        self.batches_per_epoch = len(self.sampler)
        optimizer = torch.optim.AdamW(
            trainable_parameters(model).values(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.plain_model = model.to(self.accelerator.device)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        steps_per_epoch = -(-self.batches_per_epoch // config.gradient_accumulation)
        self.total_steps = steps_per_epoch * config.epochs
        self.schedule = WarmupCosine(
            warmup_steps=round(config.warmup_epochs * steps_per_epoch),
            total_steps=self.total_steps,
            start=config.warmup_start,
            final=config.final_share,
        )
        self.position = Position()

    def train(self, resume: bool) -> Position:
        """Run to the last epoch; with ``resume`` go on from ``last.safetensors`` if there is one.

        Returns:
            Where training ended.

        Raises:
            RSRefSegError: data that cannot be read, a full disk, too little memory, or a loss that is no longer finite.
        """
        if resume and self.run.last_path.exists():
            self._restore()
        log = MetricsLog(self.run.metrics_path, self.position) if self.accelerator.is_main_process else None
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
        started, images, losses = time.perf_counter(), 0, []
        for batch_index, batch in enumerate(self.batches, start=self.position.batch):
            done = batch_index + 1
            completes_step = done % self.config.gradient_accumulation == 0 or done == self.batches_per_epoch
            self._seed(epoch, batch_index)
            losses.append(self._add_gradients(batch.to(self.accelerator.device), completes_step))
            images += len(batch.image)
            if not completes_step:
                continue
            learning_rate = self._step()
            self.position = replace(self.position, epoch=epoch, batch=done, step=self.position.step + 1)
            loss, losses = sum(losses) / len(losses), []
            if log is not None:
                log.write(step=self.position.step, epoch=epoch, loss=loss, learning_rate=learning_rate)
            speed = images * self.accelerator.num_processes / (time.perf_counter() - started)
            self.watcher.on_step(StepReport(epoch, self.position.step, self.total_steps, loss, speed))
            if self.position.step % self.config.checkpoint_every_steps == 0:
                self._checkpoint()

    def _seed(self, epoch: int, batch_index: int) -> None:
        """Seed dropout for one batch; the processes of one training draw differently."""
        place = [self.config.seed, epoch, batch_index, self.accelerator.process_index]
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0]))

    def _add_gradients(self, batch: Batch, completes_step: bool) -> float:
        """Forward and backward; processes exchange gradients only where a step is to follow. Gives the loss."""
        with nullcontext() if completes_step else self.accelerator.no_sync(self.model):
            with self.accelerator.autocast():
                prediction = self.model(batch.image, batch.input_ids, batch.token_mask, batch.image_index)
            prediction = type(prediction)(*(tensor.float() for tensor in prediction))
            loss = segmentation_loss(prediction, batch.truth, self.config.loss)
            if not torch.isfinite(loss):
                raise RSRefSegError(
                    f"the loss is no longer finite after {self.position.step} steps: start again in another --out, "
                    "with a lower --learning-rate or --precision fp32"
                )
            self.accelerator.backward(loss)
        return float(loss.detach())

    def _step(self) -> float:
        """One optimizer step on the gradients gathered; gives its learning rate."""
        learning_rate = self.config.learning_rate * self.schedule(self.position.step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        if self.config.max_grad_norm is not None:
            self.accelerator.clip_grad_norm_(trainable_parameters(self.model).values(), self.config.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return learning_rate

    def _finish_epoch(self, epoch: int, log: MetricsLog | None) -> None:
        self.position = replace(self.position, epoch=epoch + 1, batch=0)
        last = epoch + 1 == self.config.epochs
        if self.data.validation and (last or (epoch + 1) % self.config.validate_every_epochs == 0):
            self._validate(epoch, log)
        elif last:
            self._save_best()
        self._checkpoint()

    def _validate(self, epoch: int, log: MetricsLog | None) -> None:
        with self.accelerator.autocast():
            result = evaluate(
                self.plain_model, self.data.tokenizer, self.data.validation, on_size_mismatch=self.data.on_size_mismatch
            )
        if log is not None:
            log.write(step=self.position.step, epoch=epoch, validation=result.as_dict())
        self.watcher.on_validation(epoch, result)
        if result.gIoU > self.position.best_giou:
            self.position = replace(self.position, best_giou=result.gIoU)
            self._save_best()

    def _save_best(self) -> None:
        if self.accelerator.is_main_process:
            save_tensors(self.run.best_path, trained_state(self.plain_model), {"step": self.position.step})

    def _checkpoint(self) -> None:
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else None
            save_training_state(self.run.last_path, self.plain_model, self.optimizer.optimizer, self.position, scaler)

    def _restore(self) -> None:
        self.position, scaler = load_training_state(self.run.last_path, self.plain_model, self.optimizer.optimizer)
        if scaler is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(scaler)


def _mixed_precision(precision: Precision) -> str:
    """Accelerate's name for a precision; ``auto`` asks the device.

    Raises:
        BadInputError: the device does not train in it.
    """
    if precision is Precision.FP16 and not torch.cuda.is_available():
        raise BadInputError("--precision fp16 needs a CUDA device: use auto, fp32 or bf16")
    if precision is Precision.AUTO:
        if torch.cuda.is_available():
            return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
        # Where a CPU only emulates bfloat16 it is slower than float32.
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return "bf16" if native else "no"
    return "no" if precision is Precision.FP32 else precision.value
