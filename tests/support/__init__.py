"""Test helpers: small models and data sets, hand-written bundles, doubles of hardware."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
