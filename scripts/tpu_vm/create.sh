#!/usr/bin/env bash
# Creates a TPU: one VM (v5litepod-8, v6e-1) or a slice of several (v5litepod-16, v6e-16) alike.
#
# usage: create.sh --tpu=NAME --zone=ZONE --project=ID --type=TYPE [OPTIONS] [-- GCLOUD_OPTIONS...]
#
#   --tpu, --zone, --project   or the variables TPU_NAME, TPU_ZONE, TPU_PROJECT
#   --type TYPE                accelerator type; `gcloud compute tpus accelerator-types list` has them
#   --version VERSION          software of the VM; by TYPE where not given
#   --spot                     cheaper, and may be taken away at any time
#   --preemptible              the same, older: taken away after 24 hours at the latest
#   --queued                   wait in the queue until there is room, instead of failing where there
#                              is none; returns at once, and the VM is called NAME too
#   --valid-until DURATION     leave the queue after that time, such as 6h; with --queued
#   --dry-run                  print the gcloud command
#   GCLOUD_OPTIONS             given to gcloud as they are, such as --network or --service-account

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
type='' version='' spot='' preemptible='' queued='' valid_until=''
read_options "type= version= spot preemptible queued valid-until=" "$@"

[ -n "$type" ] || fail "no type is given; give --type=TYPE such as v5litepod-8 or v6e-1"
if [ -z "$version" ]; then
  case $type in
    v6e-*) version=v2-alpha-tpuv6e ;;
    v5p-*) version=v2-alpha-tpuv5 ;;
    v5litepod-*) version=v2-alpha-tpuv5-lite ;;
    v[234]-*) version='tpu-ubuntu2204-base' ;;
    *) fail "the software version for type '$type' is not known here; give --version=VERSION" ;;
  esac
fi
[ -z "$spot" ] || [ -z "$preemptible" ] || fail "--spot and --preemptible exclude each other"
[ -z "$preemptible" ] || [ -z "$queued" ] || fail "--queued has no --preemptible; give --spot"
[ -z "$valid_until" ] || [ -n "$queued" ] || fail "--valid-until is of --queued; give that too"

options=("--accelerator-type=$type" ${spot:+--spot} ${preemptible:+--preemptible}
  ${rest[@]+"${rest[@]}"})
if [ -z "$queued" ]; then
  gcloud_tpus tpu-vm create "$tpu" "--version=$version" "${options[@]}"
else
  gcloud_tpus queued-resources create "$tpu" "--node-id=$tpu" "--runtime-version=$version" \
    "${options[@]}" ${valid_until:+"--valid-until-duration=$valid_until"}
  echo "queued; it can be used when this says ACTIVE:" >&2
  dry_run=1 gcloud_tpus queued-resources describe "$tpu" "--format=value(state.state)" >&2
fi
