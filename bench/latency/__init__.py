"""``rsrefseg bench``: latency end to end and by stage."""
