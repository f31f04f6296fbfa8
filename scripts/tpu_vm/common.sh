# shellcheck shell=bash
# What the scripts of this folder have in common: their options, and how they call gcloud. Sourced.
# Bash 3.2 of macOS runs them: no associative arrays, and no empty array under `set -u` by itself.

set -euo pipefail

tpu=${TPU_NAME:-} zone=${TPU_ZONE:-} project=${TPU_PROJECT:-} dry_run='' rest=()

fail() {
  echo "${0##*/}: error: $*" >&2
  exit 2
}

# read_options "type= spot" "$@": sets a variable for each option that is given, `--max-restarts` as
# max_restarts; an option without `=` is a switch. What comes after `--` is in the array `rest`.
read_options() {
  local known=" tpu= zone= project= dry-run help $1 " argument key value
  shift
  while [ $# -gt 0 ]; do
    argument=$1 value=1
    shift
    case $argument in
      --)
        rest=("$@")
        break
        ;;
      -h) key=help ;;
      --*=*)
        key=${argument%%=*} value=${argument#*=}
        key=${key#--}=
        ;;
      --*) key=${argument#--} ;;
      *) fail "unexpected argument '$argument'; --help explains the options" ;;
    esac
    if [[ $known == *" $key= "* ]]; then # its value is the next argument
      [ $# -gt 0 ] || fail "--$key has no value; write --$key=VALUE"
      value=$1 key=$key=
      shift
    fi
    [[ $known == *" $key "* ]] || fail "unknown option '$argument'; --help explains the options"
    if [ "$key" = help ]; then
      sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
      exit 0
    fi
    key=${key%=}
    printf -v "${key//-/_}" %s "$value"
  done
  [ -n "$tpu" ] || fail "no TPU is named; give --tpu=NAME, or set TPU_NAME"
  [ -n "$zone" ] || fail "no zone is given; give --zone=ZONE such as us-west4-a, or set TPU_ZONE"
  [ -n "$project" ] ||
    fail "no project is given; give --project=ID, or set TPU_PROJECT (gcloud projects list)"
  [ -n "$dry_run" ] || command -v gcloud >/dev/null ||
    fail "gcloud is not installed; see https://cloud.google.com/sdk/docs/install, or --dry-run"
}

no_rest() {
  [ ${#rest[@]} -eq 0 ] || fail "unexpected argument '${rest[0]}'; --help explains the options"
}

# The arguments as a shell reads them back, in one line.
quoted() {
  local word text='' quote="'\\''"
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]] || word="'${word//\'/$quote}'"
    text+=" $word"
  done
  echo "${text# }"
}

# Runs a command, or prints it as it would be run.
run() {
  if [ -n "$dry_run" ]; then
    quoted "$@"
  else
    "$@"
  fi
}

# gcloud_tpus tpu-vm create ...: in the zone and project of the options.
gcloud_tpus() {
  run gcloud compute tpus "$@" "--zone=$zone" "--project=$project"
}

# on_workers WORKERS COMMAND: a line of bash on `all` workers, or on one of them by its number.
on_workers() {
  gcloud_tpus tpu-vm ssh "$tpu" "--worker=$1" "--command=$2"
}
