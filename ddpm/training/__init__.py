"""The training run: optimizer, fixed validation, the loop, and the folder that survives being killed."""
