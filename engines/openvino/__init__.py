"""OpenVINO, on CPUs and Intel GPUs."""
