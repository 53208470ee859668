"""From predictions to files: masks, overlay and JSON."""
