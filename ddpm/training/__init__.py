"""The training run: the loop, the state it saves and resumes from, its monitor, optimizers and fixed validation."""
