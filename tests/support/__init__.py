"""Helpers of the tests: small models and data sets, made bundles, doubles of hardware that most machines lack."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
