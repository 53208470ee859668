"""``rsrefseg bench``: measures latency end to end and by stage."""
