"""Weights that users bring from elsewhere: SAM, SigLIP and other people's RSRefSeg checkpoints, read without trust."""
