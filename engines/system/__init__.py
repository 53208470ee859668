"""Files, cores, progress and terminal output."""
