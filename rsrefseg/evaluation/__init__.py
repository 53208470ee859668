"""Predictions and metrics of models on data sets."""
