"""Random weights for pytorch-fid's network: the real ones cannot be had everywhere, and any serve a comparison."""

from pathlib import Path

import torch
from pytorch_fid import inception as theirs
from torch import nn

from ddpm.utils.files import sha256

OFFICIAL_NAME = theirs.FID_WEIGHTS_URL.rsplit("/", 1)[1]


def random_weights(folder: Path) -> Path:
    """Weights under a name that ends in their SHA-256; activations neither vanish nor explode in fifty layers."""
    network = theirs._inception_v3(num_classes=1008, aux_logits=False, weights=None)
    network.Mixed_5b = theirs.FIDInceptionA(192, pool_features=32)
    network.Mixed_5c = theirs.FIDInceptionA(256, pool_features=64)
    network.Mixed_5d = theirs.FIDInceptionA(288, pool_features=64)
    network.Mixed_6b = theirs.FIDInceptionC(768, channels_7x7=128)
    network.Mixed_6c = theirs.FIDInceptionC(768, channels_7x7=160)
    network.Mixed_6d = theirs.FIDInceptionC(768, channels_7x7=160)
    network.Mixed_6e = theirs.FIDInceptionC(768, channels_7x7=192)
    network.Mixed_7b = theirs.FIDInceptionE_1(1280)
    network.Mixed_7c = theirs.FIDInceptionE_2(2048)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.normal_(0, (2 / module.weight[0].numel()) ** 0.5, generator=generator)
            elif isinstance(module, nn.BatchNorm2d):
                module.bias.uniform_(-0.2, 0.2, generator=generator)
    torch.save(network.state_dict(), folder / "unnamed.pth")
    return (folder / "unnamed.pth").rename(folder / f"random-{sha256(folder / 'unnamed.pth')[:8]}.pth")
