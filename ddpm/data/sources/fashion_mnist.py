"""Fashion-MNIST: 60,000 training and 10,000 test images of clothing, 28 × 28 pixels, grey, ten classes.

Xiao et al. 2017. Beside torchvision's mirror, Debian's package `dataset-fashion-mnist` holds the original files, which
`apt-get download` brings without root.
"""

from ddpm.data.fetching import debian_file
from ddpm.data.idx import decompress
from ddpm.data.idx_source import IdxSource
from ddpm.data.sources import SOURCES

FILES = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
PACKAGE, PLACE = "dataset-fashion-mnist", "usr/share/datasets/fashion-mnist"
APT = {"apt": lambda file, scratch: decompress(debian_file(PACKAGE, f"{PLACE}/{file}.gz", scratch), file)}
NAMES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle_boot")

SOURCES.register("fashion_mnist")(IdxSource("fashion_mnist", "Fashion-MNIST", FILES, APT, NAMES))
