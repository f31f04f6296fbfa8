#!/usr/bin/env bash
# On a worker: runs a command without a connection, and again where it exits with 75.
#
# usage: supervise.sh start RUN MAX_RESTARTS DELAY FOLDER BUCKET COMMAND...
#        supervise.sh stop SECONDS
#
# launch.sh and stop.sh call it. The log and the exit code are in ~/spt_jax/runs/RUN. A TPU serves one
# process at a time, so a second run is refused while one goes on. Where BUCKET is not empty, worker 0,
# whose process writes the run, copies FOLDER there; nothing is ever deleted there.

set -euo pipefail

home=~/spt_jax
copy_seconds=${COPY_SECONDS:-300}
lock=$home/running # held while a run goes on; says which, and the process of its supervisor

fail() {
  echo "$(hostname): error: $*" >&2
  exit 1
}

note() {
  echo "=== $(date '+%Y-%m-%d %H:%M:%S') $*"
}

is_worker_0() {
  local number attribute=instance/attributes/agent-worker-number
  number=$(curl --fail --silent --header 'Metadata-Flavor: Google' \
    "http://metadata.google.internal/computeMetadata/v1/$attribute") ||
    fail "the metadata of this VM do not say which worker it is, which copying to a bucket needs"
  [ "$number" = 0 ]
}

# restore FOLDER BUCKET: the run from the bucket, unless it is here or nowhere.
restore() {
  local found
  if [ -e "$1" ]; then
    return
  elif found=$(gcloud storage ls "$2/**" 2>&1); then
    mkdir -p "$1.restored" # gets its name when it is whole
    gcloud storage rsync --recursive "$2" "$1.restored" || fail "$2 could not be copied to $1"
    mv "$1.restored" "$1"
  elif [[ $found != *"matched no objects"* ]]; then
    fail "$2 cannot be read: ${found##*$'\n'}"
  fi
}

# copy FOLDER BUCKET: what is there by now.
copy() {
  [ ! -d "$1" ] || gcloud storage rsync --recursive --no-user-output-enabled "$1" "$2" ||
    note "$1 could not be copied to $2"
}

start() {
  local run=$1 workdir=$4 bucket=$5
  local folder=$home/runs/$run
  mkdir -p "$folder"
  # The lock is open in the supervisor and in its command, and ends with them.
  exec 9>>"$lock"
  flock --nonblock 9 || fail "run '$(cut -d' ' -f1 "$lock")' goes on here; stop.sh ends it"
  if [ -n "$bucket" ] && is_worker_0; then
    restore "$workdir" "$bucket"
  else
    set -- "${@:1:3}" '' '' "${@:6}"
  fi
  : >"$lock" # the same file, emptied
  rm -f "$folder/exit_code"
  nohup setsid "$0" supervise "$@" </dev/null >>"$folder/log" 2>&1 &
  echo "$run $!" >"$lock"
  echo "$(hostname): started '$run'; log: $folder/log"
}

supervise() {
  local folder=$home/runs/$1 most=$2 delay=$3 workdir=$4 bucket=$5 restarts=0 code child='' copier=''
  shift 5
  stopping=
  if [ -n "$bucket" ]; then
    (
      trap exit TERM # a copy that has begun is finished first
      while :; do
        sleep "$copy_seconds" &
        wait $!
        copy "$workdir" "$bucket"
      done
    ) 9>&- & # without the lock, which ends with the run
    copier=$!
  fi
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
  if [ -n "$bucket" ]; then
    kill "$copier"
    wait "$copier" || true
    copy "$workdir" "$bucket"
  fi
  note "ended with exit code $code${stopping:+, as it was told to}"
  echo "$code" >"$folder/.exit_code" && mv "$folder/.exit_code" "$folder/exit_code"  # whole, or not there
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
