#!/bin/sh
# One experiment in a clone of its own: docs/scaling/experiment.sh REPOSITORY NAME -S section.key=value …
# What the team's remote holds is fetched and not computed again; results go to the repository and to that remote.
set -eu
repository=$1 name=$2
shift 2
clone=$(mktemp -d)
trap 'rm -rf "$clone"' EXIT
trap 'exit 1' HUP INT TERM  # a signal alone would end some shells without the line above
git clone --quiet "$repository" "$clone"
cd "$clone"
dvc exp run --pull --allow-missing --name "$name" "$@"
dvc exp push origin "$name"
