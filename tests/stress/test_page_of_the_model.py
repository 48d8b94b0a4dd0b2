"""The page of the shipped model in a browser that has no network: `python -m ddpm page` as a user calls it."""

import re
from collections.abc import Iterator
from statistics import median

import numpy as np
import pytest
import torch
from browser import Visit, chromium
from clones import Offline
from playwright.sync_api import Browser

import ddpm
from ddpm.evaluation.features.classifier import MnistExtractor

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def opened(browser: Browser, page: tuple[str, Offline]) -> Visit:
    address, context = page[0], browser.new_context()
    # What leaves the machine fails, as without a network, and is noted.
    context.route(lambda url: not url.startswith((address, "blob:")), lambda route: route.abort())
    visited = Visit(context.new_page(), address)
    assert visited.status() == "Ready."
    return visited


def test_the_classifier_reads_250_digits_of_all_classes_as_they_were_asked_for(opened: Visit):
    images, labels = [], np.repeat(np.arange(10), 25)
    for label in range(10):
        opened.choose("sample", count=25, seed=100 + label, **{"class": label})
        opened.submit("sample")
        images.append(opened.images("sample"))
    found = MnistExtractor(torch.device("cpu")).features(np.concatenate(images)[:, None], "page").probabilities
    assert found is not None
    right = found.argmax(1) == labels
    assert np.bincount(labels, right).min() >= 23
    assert right.mean() >= 0.97


def test_the_digits_are_python_s(opened: Visit):
    opened.choose("sample", count=16, seed=5, **{"class": -1})
    opened.submit("sample")
    expected = ddpm.load(device="cpu").sample(16, seed=5)
    assert isinstance(expected, np.ndarray)
    assert np.abs(opened.images("sample").astype(int) - expected[:, 0].astype(int)).max() <= 1


def test_a_digit_takes_at_most_three_seconds(opened: Visit):
    seconds = []
    for _ in range(5):
        opened.choose("sample", count=1)
        said = re.fullmatch(r"One picture in ([\d.]+) seconds\.", opened.submit("sample"))
        assert said
        seconds.append(float(said[1]))
    assert median(seconds) <= 3


def test_nothing_was_complained_of_and_nothing_wanted_from_elsewhere(opened: Visit):
    assert opened.complaints == []
    assert opened.elsewhere == []
