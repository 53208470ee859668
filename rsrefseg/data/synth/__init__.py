"""Made overhead scenes with referring expressions: something to train, test and demonstrate on without a download."""

from rsrefseg.data.synth.dataset import SynthSummary, synthesize
from rsrefseg.data.synth.domain import Domain
from rsrefseg.data.synth.scene import Referral, Scene, render_scene

__all__ = ["Domain", "Referral", "Scene", "SynthSummary", "render_scene", "synthesize"]
