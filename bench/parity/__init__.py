"""``rsrefseg parity``: compares a runtime with FP32 PyTorch."""
