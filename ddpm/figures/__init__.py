"""Pictures of what was measured and drawn: arrays and tables in, files out."""
