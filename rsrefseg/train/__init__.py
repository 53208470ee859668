"""Training: LoRA adaptation of a base, or a small model from scratch."""
