"""Describes the machine of a measurement: hardware, peak performance, load."""
