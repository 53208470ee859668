"""The model in PyTorch, its configuration and its LoRA adapters."""
