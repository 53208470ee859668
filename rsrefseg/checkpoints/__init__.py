"""Reads SAM, SigLIP and RSRefSeg checkpoints from untrusted files."""
