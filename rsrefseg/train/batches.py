"""Loads training batches from samples, in an order that depends only on seed and epoch."""

import signal
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from rsrefseg.engines.errors import RSRefSegError
from rsrefseg.engines.images.images import network_size, read_image

from ..model.config import ModelConfig
from .data import TrainingData

Draw = tuple[int, int]  # (image, epoch)


class Example(NamedTuple):
    """An image with K of its phrases: image (3, S, S) uint8, truth (K, S, S) uint8 in {0, 1}."""

    image: Tensor
    phrases: tuple[str, ...]
    truth: Tensor


class Batch(NamedTuple):
    """A batch of N images and P phrases.

    image (N, 3, S, S) uint8; input_ids (P, L) int64; token_mask (P, L) bool; image_index (P,) int64;
    truth (P, 1, S, S) float32 in {0, 1}.
    """

    image: Tensor
    input_ids: Tensor
    token_mask: Tensor
    image_index: Tensor
    truth: Tensor

    def to(self, device: torch.device) -> "Batch":
        """Copy the batch to a device."""
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self))


class TrainingBatches(TorchDataset[Batch | RSRefSegError]):
    """Batches indexed by draws. The phrases of an image are drawn in each epoch from seed, epoch and image.

    For an input that cannot be used, the item is the error, so that the main process receives its class; ``DataLoader``
    would raise another error with the worker's traceback as the message.
    """

    def __init__(self, data: TrainingData, config: ModelConfig, phrases_per_image: int, seed: int) -> None:
        self.data, self.config = data, config
        self.phrases_per_image, self.seed = phrases_per_image, seed

    def count_phrases(self, draws: Sequence[Draw]) -> int:
        """Return the number of phrases in some draws without reading files."""
        return sum(min(len(self.data.groups[index]), self.phrases_per_image) for index, _ in draws)

    def example(self, draw: Draw) -> Example:
        """Read an image and the masks of its drawn phrases."""
        index, epoch = draw
        group = self.data.groups[index]
        rng = np.random.default_rng([self.seed, epoch, index])
        order = rng.permutation(len(group))[: self.phrases_per_image]
        chosen = [group[position] for position in sorted(order)]
        image = read_image(chosen[0].image_path)
        size = (image.shape[0], image.shape[1])
        masks = [sample.mask_at(size, self.data.resize_masks)[0] for sample in chosen]
        side, nearest = self.config.image_size, cv2.INTER_NEAREST_EXACT
        height, width = network_size(size, side, self.config.preprocessing.keep_aspect)
        truth = np.zeros((len(masks), side, side), np.uint8)
        for target, mask in zip(truth, masks, strict=True):
            target[:height, :width] = cv2.resize(mask.astype(np.uint8), (width, height), interpolation=nearest)
        return Example(
            torch.from_numpy(self.config.stretch(image)),
            tuple(sample.phrase for sample in chosen),
            torch.from_numpy(truth),
        )

    def __getitem__(self, draws: Sequence[Draw]) -> Batch | RSRefSegError:
        try:
            examples = [self.example(draw) for draw in draws]
            tokens = self.data.tokenizer.encode([phrase for example in examples for phrase in example.phrases])
        except RSRefSegError as error:
            return error
        counts = torch.tensor([len(example.phrases) for example in examples])
        return Batch(
            image=torch.stack([example.image for example in examples]),
            input_ids=torch.from_numpy(tokens.input_ids),
            token_mask=torch.from_numpy(tokens.token_mask),
            image_index=torch.repeat_interleave(torch.arange(len(examples)), counts),
            truth=torch.cat([example.truth for example in examples]).unsqueeze(1).float(),
        )


class EpochBatches(Sampler[list[Draw]]):
    """Batches of draws of one process for one epoch: a seeded permutation, starting at ``first_batch``.

    The last batch may be short. Each of n processes takes every n-th batch, one per round, so that a round has the
    images of one batch with n times the batch size. If the last round has too few batches, the first batches fill it
    but do not count (``counts``). ``shares`` (see ``TrainingData``) defaults to all of ``size`` images.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int,
        process: int = 0,
        processes: int = 1,
        shares: tuple[tuple[int, float], ...] = (),
    ) -> None:
        self.batch_size, self.seed = batch_size, seed
        self.process, self.processes = process, processes
        self.shares = shares or ((size, 1.0),)
        self.batches = -(-len(_epoch_order(self.shares, seed, 0)) // batch_size)
        self.epoch = 0
        self.first_batch = 0

    def __len__(self) -> int:
        """Return the number of batches per epoch for one process."""
        return -(-self.batches // self.processes)

    def __iter__(self) -> Iterator[list[Draw]]:
        order = _epoch_order(self.shares, self.seed, self.epoch)
        for round_ in range(self.first_batch, len(self)):
            start = (round_ * self.processes + self.process) % self.batches * self.batch_size
            yield [(index, self.epoch) for index in order[start : start + self.batch_size]]

    def counts(self, round_: int) -> bool:
        """Return whether this process's batch of a round is part of the step."""
        return round_ * self.processes + self.process < self.batches

    def drawn(self, rounds: range) -> list[Draw]:
        """Return the draws of all processes in some rounds, each image once."""
        images_a_round = self.batch_size * self.processes
        order = _epoch_order(self.shares, self.seed, self.epoch)
        taken = order[rounds.start * images_a_round : rounds.stop * images_a_round]
        return [(index, self.epoch) for index in taken]


class BatchLoader:
    """Loads the batches of one epoch at a time in ``workers`` processes, which exist as long as this object.

    Set ``sampler.epoch`` and ``sampler.first_batch`` before each iteration.
    """

    def __init__(self, batches: TrainingBatches, sampler: EpochBatches, workers: int, pin_memory: bool = False) -> None:
        self._loader: DataLoader[Batch | RSRefSegError] = DataLoader(
            batches,
            batch_size=None,  # a draw of the sampler is a whole batch
            sampler=sampler,
            num_workers=workers,
            # Not forked: threads of this process do not survive a fork.
            multiprocessing_context="spawn" if workers else None,
            persistent_workers=workers > 0,
            worker_init_fn=_start_worker,
            pin_memory=pin_memory,
        )

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches in the sampler's order.

        Raises:
            RSRefSegError: an image or phrase cannot be used.
        """
        for item in self._loader:
            if isinstance(item, RSRefSegError):
                raise item
            yield item


def _start_worker(worker: int) -> None:
    """Limit the worker to one thread and ignore interrupts, which the main process handles."""
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@lru_cache(maxsize=2)
def _epoch_order(shares: tuple[tuple[int, float], ...], seed: int, epoch: int) -> tuple[int, ...]:
    """Return the order of images in an epoch, which draws a share of each data set.

    Epochs take a data set's images in turn from one permutation: all are drawn before one is drawn again.
    """
    drawn, first = [], 0
    for number, (size, share) in enumerate(shares):
        count = max(1, round(share * size))
        turn = np.random.default_rng([seed, number, size]).permutation(size) if count < size else np.arange(size)
        drawn.append(first + turn[(epoch * count + np.arange(count)) % size])
        first += size
    images = np.concatenate(drawn)
    return tuple(images[np.random.default_rng([seed, epoch]).permutation(len(images))].tolist())
