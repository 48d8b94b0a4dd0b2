"""The data sets that torchvision knows: small archives of each format, served on this machine; Fashion-MNIST itself."""

import gzip
import hashlib
import pickle
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets
from scipy.io import savemat
from serving import served_folder

from ddpm.data import torchvision_source
from ddpm.data.image_set import ImageSpec
from ddpm.data.sources import SOURCES, fashion_mnist
from ddpm.utils.errors import DdpmError
from ddpm.utils.files import sha256

COUNTS = {"train": 12, "test": 5}


class Archives:
    """A small data set in the published format, in a folder, with torchvision's loader told of its checksums.

    parts: the images uint8 [n, c, h, w] and labels that it holds, as the source should give them.
    """

    def __init__(self, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.name, self.folder, self._patch, self.rng = name, folder, monkeypatch, np.random.default_rng(3)
        self.parts: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self.address: Callable[[str], None] = lambda _: None

    def make(self, channels: int, size: int, classes: int) -> None:
        for part, count in COUNTS.items():
            pixels = self.rng.integers(256, size=(count, channels, size, size), dtype=np.uint8)
            self.parts[part] = pixels, np.arange(count) % classes

    def write(self, name: str, content: bytes) -> str:
        (self.folder / name).write_bytes(content)
        return hashlib.md5(content).hexdigest()


def idx(array: np.ndarray) -> bytes:
    content = array.astype(np.uint8)
    return gzip.compress(
        bytes([0, 0, 8, content.ndim]) + struct.pack(f">{content.ndim}I", *content.shape) + content.tobytes()
    )


def kmnist(it: Archives) -> None:
    it.make(1, 28, 10)
    resources = []
    for part, prefix in (("train", "train"), ("test", "t10k")):
        images, labels = it.parts[part]
        for kind, array in (("images-idx3", images[:, 0]), ("labels-idx1", labels)):
            name = f"{prefix}-{kind}-ubyte.gz"
            resources.append((name, it.write(name, idx(array))))
    it._patch.setattr(torchvision.datasets.KMNIST, "resources", resources)
    it.address = lambda address: it._patch.setattr(torchvision.datasets.KMNIST, "mirrors", [address])


def emnist(it: Archives) -> None:
    split = it.name.removeprefix("emnist_")
    it.make(1, 28, {"letters": 26, "balanced": 47}[split])
    content = BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for part, (images, labels) in it.parts.items():
            prefix = f"gzip/emnist-{split}-{part}"
            archive.writestr(f"{prefix}-images-idx3-ubyte.gz", idx(images[:, 0].swapaxes(1, 2)))
            archive.writestr(f"{prefix}-labels-idx1-ubyte.gz", idx(labels + (split == "letters")))
    it._patch.setattr(torchvision.datasets.EMNIST, "md5", it.write("gzip.zip", content.getvalue()))
    it.address = lambda address: it._patch.setattr(torchvision.datasets.EMNIST, "url", f"{address}gzip.zip")


def cifar(it: Archives) -> None:
    loader = getattr(torchvision.datasets, it.name.upper())
    fine = it.name == "cifar100"
    it.make(3, 32, 10)
    batches = (
        {"train": ["train"], "test": ["test"]}
        if fine
        else {"train": ["data_batch_1", "data_batch_2"], "test": ["test_batch"]}
    )
    meta = {loader.meta["key"]: [f"class_{i}" for i in range(10)]}
    files = {loader.meta["filename"]: pickle.dumps(meta)}
    for part, names in batches.items():
        images, labels = it.parts[part]
        for name, rows in zip(names, np.array_split(np.arange(len(images)), len(names)), strict=True):
            entry = {
                "data": images[rows].reshape(len(rows), -1),
                "fine_labels" if fine else "labels": labels[rows].tolist(),
            }
            files[name] = pickle.dumps(entry)
    content = BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(f"{loader.base_folder}/{name}")
            member.size = len(data)
            archive.addfile(member, BytesIO(data))
    md5 = {name: hashlib.md5(data).hexdigest() for name, data in files.items()}
    it._patch.setattr(loader, "tgz_md5", it.write(loader.filename, content.getvalue()))
    it._patch.setattr(loader, "train_list", [[name, md5[name]] for name in batches["train"]])
    it._patch.setattr(loader, "test_list", [[name, md5[name]] for name in batches["test"]])
    it._patch.setattr(loader, "meta", loader.meta | {"md5": md5[loader.meta["filename"]]})
    it.address = lambda address: it._patch.setattr(loader, "url", f"{address}{loader.filename}")


def svhn(it: Archives) -> None:
    it.make(3, 32, 10)
    md5 = {}
    for part, (images, labels) in it.parts.items():
        content = BytesIO()
        savemat(
            content,
            {"X": images.transpose(2, 3, 1, 0), "y": np.where(labels == 0, 10, labels)[:, None].astype(np.uint8)},
        )
        md5[part] = it.write(f"{part}_32x32.mat", content.getvalue())

    def address(address: str) -> None:
        names = {part: f"{part}_32x32.mat" for part in COUNTS}
        listed = {part: [address + names[part], names[part], md5[part]] for part in COUNTS}
        it._patch.setattr(torchvision.datasets.SVHN, "split_list", listed)

    address("http://127.0.0.1:9/")
    it.address = address


MAKERS = {
    "kmnist": kmnist,
    "emnist_letters": emnist,
    "emnist_balanced": emnist,
    "cifar10": cifar,
    "cifar100": cifar,
    "svhn": svhn,
}


@pytest.fixture(params=MAKERS)
def archives(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Archives:
    """Each of the formats; nothing is served yet."""
    (tmp_path / "published").mkdir()
    made = Archives(request.param, tmp_path / "published", monkeypatch)
    MAKERS[request.param](made)
    made.address("http://127.0.0.1:9/")
    return made


@pytest.fixture
def served(archives: Archives, monkeypatch: pytest.MonkeyPatch) -> Iterator[Archives]:
    """The same, served on this machine, where torchvision's loader looks for it."""
    with served_folder(archives.folder) as address:
        archives.address(address)
        yield archives


def check(archives: Archives, folder: Path) -> None:
    source = SOURCES[archives.name]
    for part, (images, labels) in archives.parts.items():
        found = source.load(folder, part)
        assert np.array_equal(found.images, images)
        assert np.array_equal(found.labels, labels)
        assert found.name == archives.name
    classes = {"emnist_letters": 26, "emnist_balanced": 47}.get(archives.name, 10)
    assert found.spec.classes == classes == len(found.class_names)


def test_the_published_archives_are_fetched_from_the_server_and_read(served: Archives, tmp_path: Path):
    source, folder = SOURCES[served.name], tmp_path / "data" / "raw"
    folder.mkdir(parents=True)
    (folder / "train-images-idx3-ubyte").write_bytes(b"of another data set")
    assert source.fetch("auto", folder) == "mirror"
    check(served, folder)
    assert {path.name for path in folder.iterdir()} == {"train.npz", "test.npz", "sha256.json"}
    before = sha256(*sorted(folder.iterdir()))
    served.address("http://127.0.0.1:9/")
    assert source.fetch("mirror", folder) == "already there"
    (folder / "test.npz").write_bytes(b"damaged")
    assert source.fetch(str(served.folder), folder) == str(served.folder)
    assert sha256(*sorted(folder.iterdir())) == before


def test_a_server_with_other_files_or_none_is_named_and_nothing_is_kept(served: Archives, tmp_path: Path):
    source, folder = SOURCES[served.name], tmp_path / "data" / "raw"
    for path in served.folder.iterdir():
        path.write_bytes(path.read_bytes()[:-9] + bytes(9))
    with pytest.raises(DdpmError, match=rf"data\.source=auto: {served.name} could not be fetched \(mirror: ") as caught:
        source.fetch("auto", folder)
    assert "\n" not in str(caught.value)
    served.address("http://127.0.0.1:9/")
    with pytest.raises(DdpmError, match="could not be fetched"):
        source.fetch("mirror", folder)
    assert not folder.exists()


def test_a_folder_lacks_an_archive_or_holds_another(
    archives: Archives, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torchvision_source, "TIMEOUT_SECONDS", 1)
    source, folder = SOURCES[archives.name], tmp_path / "data" / "raw"
    (tmp_path / "empty").mkdir()
    with pytest.raises(DdpmError, match=r"empty holds no .*(gz|zip|mat)"):
        source.fetch(str(tmp_path / "empty"), folder)
    first = sorted(archives.folder.iterdir())[0]
    original = first.read_bytes()
    first.write_bytes(original[:-1] + b"?")
    with pytest.raises(DdpmError, match=rf"{first.name} has MD5 [0-9a-f]{{12}}… instead of"):
        source.fetch(str(archives.folder), folder)
    assert first.read_bytes() == original[:-1] + b"?"
    with pytest.raises(DdpmError, match=r"data\.source=npm: choose auto, mirror, or name a folder"):
        source.fetch("npm", folder)
    assert not folder.exists()


def test_the_original_fashion_mnist_is_fetched_from_debian_and_read(tmp_path: Path):
    if not shutil.which("apt-get"):
        pytest.skip("no Debian")
    source = SOURCES["fashion_mnist"]
    try:
        assert source.fetch("apt", tmp_path) == "apt"
    except DdpmError as error:
        if "SHA-256" in str(error):
            raise
        pytest.skip(str(error))
    assert {path.name: sha256(path) for path in tmp_path.iterdir()} == fashion_mnist.FILES
    train, test = source.load(tmp_path, "train"), source.load(tmp_path, "test")
    assert train.spec == test.spec == ImageSpec(28, 1, 10, "fashion_mnist", fashion_mnist.NAMES)
    assert (len(train), len(test)) == (60_000, 10_000)
    assert train.class_frequencies() == [0.1] * 10
    # A shoe is dark above, a trouser is split in the middle.
    means = {name: train.images[train.labels == label].mean(0)[0] for label, name in enumerate(train.class_names)}
    assert means["sneaker"][:7].mean() < 10 < 60 < means["sneaker"][12:20].mean()
    assert means["trouser"][24:, 13:15].mean() < 0.5 * means["trouser"][24:, 9:12].mean()
    assert source.fetch("auto", tmp_path) == "already there"


def test_debian_without_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DdpmError, match=r"Fashion-MNIST could not be fetched \(apt: the command apt-get is not inst"):
        SOURCES["fashion_mnist"].fetch("apt", tmp_path / "raw")
    apt = tmp_path / "apt-get"
    apt.write_text("#!/bin/sh\necho 'E: Unable to locate package' >&2\nexit 100\n")
    apt.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(DdpmError, match="`apt-get download dataset-fashion-mnist` failed: E: Unable to locate package"):
        SOURCES["fashion_mnist"].fetch("apt", tmp_path / "raw")
