#!/bin/sh
# One of the processes that train together, started by torchrun or by srun in the repository's folder, which all share.
# The first one runs under DVC, which records the results: not from its cache of earlier runs, as the others would wait.
set -eu
export RANK="${RANK:-${SLURM_PROCID:-}}" WORLD_SIZE="${WORLD_SIZE:-${SLURM_NTASKS:-}}"
export LOCAL_RANK="${LOCAL_RANK:-${SLURM_LOCALID:-}}"
if [ "$RANK" -eq 0 ]; then
    exec dvc repro --no-run-cache train
fi
exec python -m stages.train
