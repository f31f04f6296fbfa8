#!/usr/bin/env bash
# Starts a command of spt-jax on all workers of a TPU and returns: it runs on without a connection,
# and its output goes to ~/spt_jax/runs/RUN/log of each worker (logs.sh). Exit code 75, with which a
# command says that it wants to go on, starts it again; any other code ends it.
#
# usage: launch.sh --tpu=NAME --zone=ZONE --project=ID [OPTIONS] -- [VARIABLE=VALUE ...] COMMAND ...
#    as: launch.sh --run=boolq -- train --config=paper/boolq --workdir=gs://BUCKET/runs/boolq
#
#   --tpu, --zone, --project   or the variables TPU_NAME, TPU_ZONE, TPU_PROJECT
#   --run RUN                  what this run is called here; `main` by default
#   --max-restarts N           20 by default
#   --restart-delay SECONDS    before each, 30 by default
#   --copy-to gs://BUCKET/RUN  where the --workdir of COMMAND is a folder: copy it there every five
#                              minutes and at the end, and back first where this VM is new
#   --dry-run                  print the gcloud command
#   COMMAND                    as after `spt-jax`; the processes of a slice find each other

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
run=main max_restarts=20 restart_delay=30 copy_to=''
read_options "run= max-restarts= restart-delay= copy-to=" "$@"

[ ${#rest[@]} -gt 0 ] || fail "no command is given; write -- train --config ... at the end"
[[ $run =~ ^[A-Za-z0-9_][A-Za-z0-9._-]*$ ]] ||
  fail "--run is '$run', expected a name of letters, digits, '.', '_' and '-'"
for number in "$max_restarts" "$restart_delay"; do
  [[ $number =~ ^[0-9]+$ ]] ||
    fail "--max-restarts or --restart-delay is '$number', expected a whole number"
done

# Without a TPU, jax would compute on the CPU and say so in one line.
variables=('JAX_PLATFORMS=tpu,cpu')
while [[ ${rest[0]:-} =~ ^[A-Za-z_][A-Za-z0-9_]*= ]]; do
  variables+=("${rest[0]}")
  rest=("${rest[@]:1}")
done
[ ${#rest[@]} -gt 0 ] || fail "no command is given after the variables; write train --config ..."

workdir=''
if [ -n "$copy_to" ]; then
  [[ $copy_to == gs://*/* ]] || fail "--copy-to is '$copy_to', expected gs://BUCKET/FOLDER"
  for argument in "${rest[@]}"; do
    [[ $argument != --workdir=* ]] || workdir=${argument#*=}
  done
  [ -n "$workdir" ] || fail "--copy-to copies the folder of the run; give COMMAND a --workdir=FOLDER"
  [[ $workdir != gs:* ]] ||
    fail "--copy-to is given, but --workdir=$workdir is in a bucket already; leave --copy-to out"
fi

on_workers all "\$HOME/spt_jax/source/scripts/tpu_vm/supervise.sh start $run $max_restarts \
$restart_delay $(quoted "$workdir" "$copy_to") env $(quoted "${variables[@]}") ~/spt_jax/venv/bin/spt-jax $(quoted "${rest[@]}")"
