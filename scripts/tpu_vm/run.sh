#!/usr/bin/env bash
# Runs a command on all workers of a TPU, with spt-jax and its python on the path, and waits for it.
#
# usage: run.sh --tpu=NAME --zone=ZONE --project=ID [OPTIONS] -- COMMAND ...
#    as: run.sh -- spt-jax data prepare super_glue/boolq
#
#   --tpu, --zone, --project   or the variables TPU_NAME, TPU_ZONE, TPU_PROJECT
#   --worker N                 `all` by default
#   --dry-run                  print the gcloud command

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
worker=all
read_options "worker=" "$@"

[ ${#rest[@]} -gt 0 ] || fail "no command is given; write it at the end, after --"
on_workers "$worker" "PATH=~/spt_jax/venv/bin:\$PATH; $(quoted "${rest[@]}")"
