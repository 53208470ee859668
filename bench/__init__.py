"""Compares engines with PyTorch and with each other: parity, accuracy, latency."""
