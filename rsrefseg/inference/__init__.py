"""Stages in the form that is exported: mathematically equal to the published modules, with constants folded."""
