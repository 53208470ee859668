"""``rsrefseg eval``: scores of a model on a data set."""
