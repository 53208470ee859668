"""Half precision written in the model itself, before export: what is half, what stays float32, and why."""
