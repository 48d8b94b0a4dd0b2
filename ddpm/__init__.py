"""Denoising diffusion probabilistic models on MNIST: data, diffusion, network, training, evaluation, figures.

The library takes typed settings, tensors and paths as arguments. It knows nothing of DVC, of ``params.yaml`` or of the
working directory: those belong to ``stages/``.
"""
