"""TensorRT 10 and 11 engines: build, store and run."""
