"""Figures of results: arrays and tables in, files out."""
