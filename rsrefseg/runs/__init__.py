"""Run folders: what training, merging and importing write, and what evaluation and export read."""
