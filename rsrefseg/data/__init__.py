"""Data sets: reading and writing them, checking them, loading their images and masks."""
