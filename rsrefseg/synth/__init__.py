"""Made overhead scenes with referring expressions: something to train, test and demonstrate on without a download."""

from .dataset import SynthSummary, synthesize
from .domain import Domain
from .scene import Referral, Scene, render_scene

__all__ = ["Domain", "Referral", "Scene", "SynthSummary", "render_scene", "synthesize"]
