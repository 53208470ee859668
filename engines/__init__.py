"""Runs a bundle without PyTorch: the part that an edge device installs. ``rsrefseg`` exports the public names."""
