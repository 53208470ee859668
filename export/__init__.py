"""From a merged model to a bundle: five ONNX graphs, their manifest and the reference that proves them."""
