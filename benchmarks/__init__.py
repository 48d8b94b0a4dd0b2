"""Measurements anyone can rerun: one module each, printing a table and writing JSON."""
