"""INT8 and FP8: quantises the encoders of a bundle, and judges the result by its masks."""
