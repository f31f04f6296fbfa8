#!/usr/bin/env bash
# Deletes a TPU with its disk. What is in a bucket stays; a run in a folder of the VM is lost.
#
# usage: delete.sh --tpu=NAME --zone=ZONE --project=ID [OPTIONS]
#
#   --tpu, --zone, --project   or the variables TPU_NAME, TPU_ZONE, TPU_PROJECT
#   --queued                   it was created so: deletes its place in the queue, and the VM
#   --yes                      do not ask
#   --dry-run                  print the gcloud command

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
queued='' yes=''
read_options "queued yes" "$@"
no_rest

if [ -n "$queued" ]; then
  gcloud_tpus queued-resources delete "$tpu" --force ${yes:+--quiet}
else
  gcloud_tpus tpu-vm delete "$tpu" ${yes:+--quiet}
fi
