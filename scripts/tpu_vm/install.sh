#!/usr/bin/env bash
# Installs this checkout, as it is committed, on all workers of a TPU: in ~/spt_jax, with a Python of
# its own. Run it again after a commit, or on a TPU that was created again.
#
# usage: install.sh --tpu=NAME --zone=ZONE --project=ID [OPTIONS]
#
#   --tpu, --zone, --project   or the variables TPU_NAME, TPU_ZONE, TPU_PROJECT
#   --extras LIST              extras beside `tpu`, such as hub,tfds-prepare
#   --python VERSION           3.12 by default
#   --dry-run                  print the commands

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
extras='' python=3.12
read_options "extras= python=" "$@"
no_rest

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
archive=${TMPDIR:-/tmp}/spt_jax.tar.gz
if [ -z "$dry_run" ] && [ -n "$(git -C "$root" status --porcelain)" ]; then
  echo "${0##*/}: note: what is not committed in $root is not installed" >&2
fi
run git -C "$root" archive --format=tar.gz "--output=$archive" HEAD
gcloud_tpus tpu-vm scp "$archive" "$tpu:spt_jax.tar.gz" --worker=all

# The images have Python 3.10; uv brings the one that is asked for.
requirement=$(quoted "[tpu${extras:+,$extras}]")
on_workers all "set -e
rm -rf ~/spt_jax/source && mkdir -p ~/spt_jax/source
tar -xzf ~/spt_jax.tar.gz -C ~/spt_jax/source
PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv
python3 -m uv venv --quiet --clear --python $(quoted "$python") ~/spt_jax/venv
python3 -m uv pip install --quiet --python ~/spt_jax/venv/bin/python ~/spt_jax/source$requirement
~/spt_jax/venv/bin/spt-jax --version"
