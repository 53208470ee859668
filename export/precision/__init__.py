"""Half precision, applied to the model before export: what becomes float16, what stays float32, and why."""
