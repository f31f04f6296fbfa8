#!/usr/bin/env bash
# Follows the log of a run until Ctrl-C, which does not end the run.
#
# usage: logs.sh --tpu=NAME --zone=ZONE --project=ID [OPTIONS]
#
#   --tpu, --zone, --project   or the variables TPU_NAME, TPU_ZONE, TPU_PROJECT
#   --run RUN                  as given to launch.sh; `main` by default
#   --worker N                 0 by default, which alone reports progress; or `all`
#   --lines N                  of what was written before, 50 by default
#   --once                     print these lines and end
#   --dry-run                  print the gcloud command

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
run=main worker=0 lines=50 once=''
read_options "run= worker= lines= once" "$@"
no_rest

follow=-F
[ -z "$once" ] || follow=
command="tail -n $(quoted "$lines") ${follow:+$follow }~/spt_jax/runs/$(quoted "$run")/log"
# shellcheck disable=SC2016 # expanded on the worker
[ "$worker" != all ] || command+=' | sed -u "s/^/$(hostname): /"'
on_workers "$worker" "$command"
