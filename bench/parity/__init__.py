"""``rsrefseg parity``: a runtime compared with FP32 PyTorch."""
