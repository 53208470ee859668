"""Made overhead scenes with referring expressions: something to train, test and demonstrate on without a download."""

from ..data.rrsisd_writer import Referral
from .dataset import SynthSummary, synthesize
from .domain import Domain
from .scene import Scene, render_scene

__all__ = ["Domain", "Referral", "Scene", "SynthSummary", "render_scene", "synthesize"]
