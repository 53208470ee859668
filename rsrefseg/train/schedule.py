"""Learning-rate schedule."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WarmupCosine:
    """Linear warm-up and half a cosine, relative to the peak rate (published: 5 epochs from 1%, then to 0.1%)."""

    warmup_steps: int
    total_steps: int
    start: float
    final: float

    def __call__(self, step: int) -> float:
        """Return the fraction of the peak rate for optimizer step ``step`` (0-based)."""
        if step < self.warmup_steps:
            return self.start + (1 - self.start) * step / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
