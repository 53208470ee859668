"""Run folders, which training, merging and importing write and which evaluation and export read."""
