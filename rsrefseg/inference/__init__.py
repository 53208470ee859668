"""Stages in their exported form: mathematically equal to the published modules, with constants folded."""
