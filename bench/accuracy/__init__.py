"""Scores of a model on a data set, under a named protocol."""
