"""Compares engines with PyTorch and with each other in parity, accuracy and latency."""
