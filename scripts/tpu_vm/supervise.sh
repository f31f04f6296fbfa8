#!/usr/bin/env bash
# On a worker: runs a command without a connection, and again where it exits with 75.
#
# usage: supervise.sh start RUN MAX_RESTARTS DELAY COMMAND...
#        supervise.sh stop SECONDS
#
# launch.sh and stop.sh call it. The log and the exit code are in ~/spt_jax/runs/RUN. A TPU serves one
# process at a time, so a second run is refused while one goes on.

set -euo pipefail

home=~/spt_jax
lock=$home/running # held while a run goes on; says which, and the process of its supervisor

fail() {
  echo "$(hostname): error: $*" >&2
  exit 1
}

note() {
  echo "=== $(date '+%Y-%m-%d %H:%M:%S') $*"
}

start() {
  local run=$1
  local folder=$home/runs/$run
  mkdir -p "$folder"
  # The lock is open in the supervisor and in its command, and ends with them.
  exec 9>>"$lock"
  flock --nonblock 9 || fail "run '$(cut -d' ' -f1 "$lock")' goes on here; stop.sh ends it"
  : >"$lock" # the same file, emptied
  rm -f "$folder/exit_code"
  nohup setsid "$0" supervise "$@" </dev/null >>"$folder/log" 2>&1 &
  echo "$run $!" >"$lock"
  echo "$(hostname): started '$run'; log: $folder/log"
}

supervise() {
  local folder=$home/runs/$1 most=$2 delay=$3 restarts=0 code child=
  shift 3
  stopping=
  trap 'stopping=1; kill -TERM $child 2>/dev/null || true' TERM
  while :; do
    note "$*"
    "$@" &
    child=$!
    code=0
    wait "$child" || code=$?
    while kill -0 "$child" 2>/dev/null; do # a signal to this process has ended the wait
      code=0
      wait "$child" || code=$?
    done
    if [ "$code" -ne 75 ] || [ -n "$stopping" ] || [ "$restarts" -ge "$most" ]; then
      break
    fi
    restarts=$((restarts + 1))
    note "exit code 75: restart $restarts of $most in $delay s"
    sleep "$delay" &
    child=$!
    wait "$child" || true
    [ -z "$stopping" ] || break
  done
  note "ended with exit code $code${stopping:+, as it was told to}"
  echo "$code" >"$folder/exit_code"
}

stop() {
  local run pid left=$1
  if ! [ -e "$lock" ] || flock --nonblock "$lock" true; then
    echo "$(hostname): no run goes on"
    return
  fi
  read -r run pid <"$lock"
  kill -TERM "$pid" || fail "the supervisor of '$run' is gone, its command is not; end that by hand"
  while ! flock --nonblock "$lock" true; do
    [ "$left" -gt 0 ] || fail "run '$run' has not ended in $1 s; it was told to"
    left=$((left - 1))
    sleep 1
  done
  echo "$(hostname): '$run' ended with exit code $(cat "$home/runs/$run/exit_code")"
}

case ${1:-} in
  start | supervise | stop) "$@" ;;
  *) fail "unknown action '${1:-}'; expected start or stop" ;;
esac
