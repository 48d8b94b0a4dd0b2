"""The stages of dvc.yaml: each reads `params.yaml`, makes one call into `ddpm` and writes its outputs."""
