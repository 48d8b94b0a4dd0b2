"""Denoising diffusion probabilistic models on MNIST: data, diffusion, network, training, evaluation, figures.

    import ddpm
    model = ddpm.load()
    sevens = model.sample(16, labels=7)

The library takes typed settings, tensors and paths as arguments. It knows nothing of DVC, of ``params.yaml`` or of the
working directory: those belong to ``stages/``.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddpm.api import Inversion, Model, load

__all__ = ["Inversion", "Model", "load"]


def __getattr__(name: str) -> Any:  # noqa: ANN401
    # Not at the top: who wants one module of the library does not wait for all of it.
    if name in __all__:
        from ddpm import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
