#!/bin/sh
# Two workers on one study in PostgreSQL, here both on this machine (a minute):
#   TRANSFER_BO_STORAGE=postgresql://me@db.example/transfer sh examples/postgresql.sh
set -eu
: "${TRANSFER_BO_STORAGE:?set it to the address of a database, e.g. postgresql://me@db.example/transfer}"
study="$(dirname "$0")/command_line/study.toml"

transfer-bo worker "$study" --workers 1 & # the same command on any other machine joins the study
first=$!
transfer-bo worker "$study" --workers 1
wait "$first"

transfer-bo suggest "$study"
