"""Bundles, runs and published weights on the Hugging Face hub."""
