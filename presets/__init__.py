"""Named settings on top of params.yaml: `python -m presets NAME`."""
