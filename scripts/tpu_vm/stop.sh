#!/usr/bin/env bash
# Ends what launch.sh started: it is told to end by SIGTERM, and is not started again. The same launch
# goes on from its last save. The TPU is still there, and costs: delete.sh.
#
# usage: stop.sh --tpu=NAME --zone=ZONE --project=ID [OPTIONS]
#
#   --tpu, --zone, --project   or the variables TPU_NAME, TPU_ZONE, TPU_PROJECT
#   --timeout SECONDS          wait so long for it to end, 600 by default
#   --vm                       then stop the VM too, which keeps its disk; `gcloud compute tpus tpu-vm
#                              start` starts it. Not possible with slices and spot VMs
#   --dry-run                  print the gcloud commands

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
timeout=600 vm=''
read_options "timeout= vm" "$@"
no_rest

on_workers all "\$HOME/spt_jax/source/scripts/tpu_vm/supervise.sh stop $(quoted "$timeout")"
[ -z "$vm" ] || gcloud_tpus tpu-vm stop "$tpu"
