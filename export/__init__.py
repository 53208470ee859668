"""Exports a merged model to a bundle: five ONNX graphs, their manifest, and reference samples to verify them."""
