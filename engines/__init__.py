"""Runs a bundle without PyTorch: what an edge device installs. Public names are those of ``rsrefseg``."""
