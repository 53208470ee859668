"""The machine a measurement runs on: what it is, its peaks, its load."""
