"""Renders overhead scenes with referring expressions, for training, tests and demos without a download."""

from ..data.rrsisd_writer import Referral
from .dataset import SynthSummary, synthesize
from .domain import Domain
from .scene import Scene, render_scene

__all__ = ["Domain", "Referral", "Scene", "SynthSummary", "render_scene", "synthesize"]
