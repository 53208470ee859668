"""Reads, writes and checks data sets and loads their images and masks."""
