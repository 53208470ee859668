"""Image files to uint8 RGB arrays."""
