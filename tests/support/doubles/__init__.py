"""Doubles of hardware that most machines lack. What runs on them has not run on the hardware."""
