#!/usr/bin/env bash
# Installs the project into .venv beside it, from requirements.lock, with JAX for an accelerator: on each TPU VM, in the image, on a Slurm cluster.
#
#   launch/install.sh tpu|cuda12|cuda13|cpu
set -uo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
case ${1-} in
tpu | cuda12 | cuda13) extra="jax[$1]" ;;
cpu) extra=jax ;;
*) die "usage: launch/install.sh tpu|cuda12|cuda13|cpu, not '${1-}'." ;;
esac
cd "$root" || exit 1

suits() {
  "$1" -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null
}
if ! suits .venv/bin/python; then
  for python in "${PYTHON:-python3.12}" python3.13 python3.11 python3; do
    suits "$python" && "$python" -m venv --clear .venv && break
  done
  # TPU VMs come with Python 3.10; uv brings one that is new enough.
  suits .venv/bin/python || { python3 -m pip install --quiet --user uv && python3 -m uv venv --quiet --seed --clear --python 3.12 .venv; }
  suits .venv/bin/python || die "$(hostname) has no Python 3.11, 3.12 or 3.13 with its venv module, and uv could not bring one: install python3.12-venv."
fi
pip=(.venv/bin/python -m pip --disable-pip-version-check --no-input --quiet)
{
  "${pip[@]}" install --constraint requirements.lock setuptools wheel &&
    "${pip[@]}" install --no-build-isolation --requirement requirements.lock "$extra" &&
    "${pip[@]}" install --no-build-isolation --no-deps --editable .
} || die "the packages could not be installed on $(hostname): pip says why above; the same command tries again."
touch .venv/installed # for make, which would install without the accelerator
say "installed on $(hostname) for $1"
