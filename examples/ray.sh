#!/bin/sh
# Trials as tasks of a Ray cluster, the one of RAY_ADDRESS or else a new one here (a minute): sh examples/ray.sh
# The folder of the study must be at the same path on every node. Needs pip install "transfer-bo[ray]".
set -eu
folder="$(dirname "$0")/command_line"
study="$folder/ray.toml"

sed 's/^name = .*/name = "on_ray"/' "$folder/study.toml" > "$study"
printf '\n[run]\nrunner = "ray"\nworkers = 2\n' >> "$study"

transfer-bo run "$study"
transfer-bo suggest "$study"
