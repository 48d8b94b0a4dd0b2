"""Sampling from a trained network: image numbers in, images out, in batches that a killed run resumes from."""
