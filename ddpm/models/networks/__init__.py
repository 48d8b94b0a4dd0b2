"""The networks by name: one module each, which registers a class.

It is built by `ddpm.models.build.build_network`: of its parameters, ``input_channels``, ``output_channels``,
``image_size`` and ``classes`` come from the images, the others name the keys of params.yaml's section `model` that it
reads. Its method ``forward(x_t, t, labels=None)`` takes float [n, input_channels, h, w], int64 [n] in 0 … T−1 and int64
[n] class labels (`NULL_LABEL` for an image without one, None for all), and returns the prediction, float [n,
output_channels, h, w]. Both are the images' channels, but twice as many are given with model.self_conditioning (x_t,
then the last x̂_0) and are predicted with model.learned_variance (the target, then the variance). Where it has an
nn.Embedding ``label_embedding`` of a row a label, and one of the null label after them, training starts from rows that
are alike for alike clusters: `ddpm.models.conditioning.Conditioning.spread`.

The optimizer `muon` leaves the layers ``conv_in``, ``conv_out`` and ``label_embedding`` to AdamW: first and last ones
are to be called so. A class with the attribute ``one_resolution = True`` never halves it: the patches alone need divide
the images' size.
"""

from torch import nn

from ddpm.utils.registry import Registry

NULL_LABEL = -1  # in place of the class label of an image that the network is not conditioned on
NETWORKS: Registry[type[nn.Module]] = Registry("network", __name__)
