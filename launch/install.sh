#!/usr/bin/env bash
# Installs the project into .venv beside it, from requirements.lock, with JAX for an accelerator: on each TPU VM, in the image, on a Slurm cluster.
#
#   launch/install.sh [--dry-run] tpu|cuda12|cuda13|cpu
set -uo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
opt_dry_run=""
if [[ ${1-} == --dry-run ]]; then
  opt_dry_run=yes
  shift
fi
case ${1-} in
tpu | cuda12 | cuda13) extra="jax[$1]" ;;
cpu) extra=jax ;;
*) die "usage: launch/install.sh [--dry-run] tpu|cuda12|cuda13|cpu, not '${1-}'." ;;
esac
cd "$root" || exit 1

suits() {
  "$1" -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null
}
if [[ -n $opt_dry_run ]]; then
  note "in $root, where .venv has no Python 3.11, 3.12 or 3.13, with the first of ${PYTHON:-python3.12}, python3.13, python3.11 and python3 that is" \
    "one,"
  note "or, where none is, with what uv brings:"
  quoted "${PYTHON:-python3.12}" -m venv --clear .venv
elif ! suits .venv/bin/python; then
  for python in "${PYTHON:-python3.12}" python3.13 python3.11 python3; do
    suits "$python" && "$python" -m venv --clear .venv && break
  done
  # TPU VMs come with Python 3.10; uv brings one that is new enough.
  suits .venv/bin/python || { python3 -m pip install --quiet --user uv && python3 -m uv venv --quiet --seed --clear --python 3.12 .venv; }
  suits .venv/bin/python ||
    die "$(hostname) has no Python 3.11, 3.12 or 3.13 with its venv module, and uv could not bring one: install python3.12-venv."
fi
pip=(.venv/bin/python -m pip --disable-pip-version-check --no-input --quiet)
{
  act "${pip[@]}" install --constraint requirements.lock setuptools wheel &&
    act "${pip[@]}" install --no-build-isolation --requirement requirements.lock "$extra" &&
    act "${pip[@]}" install --no-build-isolation --no-deps --editable .
} || die "the packages could not be installed on $(hostname): pip says why above; the same command tries again."
act touch .venv/installed # for make, which would install without the accelerator
[[ -n $opt_dry_run ]] || say "installed on $(hostname) for $1"
