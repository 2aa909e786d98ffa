#!/usr/bin/env bash
# One process of a job, on the machine that has the devices: `python -m cdcd_jax.train ARGS...` in a clean environment. Every launcher ends here.
#
#   PLATFORM=tpu_vm|gke|slurm launch/worker.sh ARGS...
#
# Removes what an earlier job left in the environment, waits for devices that a crashed process still holds, passes SIGTERM on, and ends with the
# trainer's code. With CODES=FOLDER it leaves the code there, and whether it was told to stop. PYTHON names the interpreter (.venv's by default).
set -uo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# These say to JAX who the processes are, and what they may use. Where the platform sets them they are this job's; anywhere else
# they are an earlier one's, and it would hang.
case ${PLATFORM:?} in
gke) stale='^JAX_(COORDINATOR_ADDRESS|NUM_PROCESSES|PROCESS_ID)$' ;;
tpu_vm)
  stale='^(JAX_(COORDINATOR_ADDRESS|NUM_PROCESSES|PROCESS_ID|PLATFORMS)|MEGASCALE_.*|SLURM_.*|TPU_(WORKER|PROCESS|VISIBLE|HOST)_.*'
  stale+='|TPU_CHIPS_PER_.*|TPU_SKIP_MDS_QUERY)$'
  ;;
slurm) stale='^(JAX_(COORDINATOR_ADDRESS|NUM_PROCESSES|PROCESS_ID|PLATFORMS)|MEGASCALE_.*|TPU_.*)$' ;; # sbatch sends the login shell's along
*) die "PLATFORM=$PLATFORM is none of tpu_vm, gke and slurm." ;;
esac
for name in $(compgen -e | grep -E "$stale"); do
  say "left over from before, and removed: $name=${!name}"
  unset "$name"
done
export CDCD_MULTIHOST=1

# The port that process 0 listens on. TPU VMs: what Google's own firewall rule opens, which JAX's default (8482) is not. Slurm: another one in each
# life, since the life before may still hold its own.
case $PLATFORM in
tpu_vm) : "${JAX_COORDINATOR_PORT:=8476}" ;;
slurm) : "${JAX_COORDINATOR_PORT:=$((61440 + (SLURM_JOB_ID + ${SLURM_RESTART_COUNT:-0}) % 4096))}" ;;
esac
[[ -n ${JAX_COORDINATOR_PORT-} ]] && export JAX_COORDINATOR_PORT

# What one life compiled the next one reads: beside the workdir, in the same bucket or on the same disk.
for flag in "$@"; do
  case $flag in --workdir=*) workdir=${flag#*=} ;; esac
done
workdir=$(plain_folder "${workdir-}")
[[ $workdir == */* ]] && export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-${workdir%/*}/compiled}"

# Machines of one job are not ready at the same time: one may still pull an image when another already waits. The default is made for one machine.
[[ " $* " == *" --config.hosts.meet_seconds="* ]] || set -- "$@" --config.hosts.meet_seconds=1800

# A process that crashed may hold the TPU for a while, and the next one would fail. One of ours is ended; another's is waited for, and then named:
# it may have ended at the next start, so that this is no mistake of the user's, but a 75.
holders() {
  find /proc/[0-9]*/fd -maxdepth 1 \( -lname "${DEVICES:-/dev/vfio/[0-9]*}" -o -lname '/dev/accel*' \) 2>/dev/null | cut -d / -f 3 | sort -u
}
wait_for_devices() {
  local pid command end=$((SECONDS + ${BUSY_SECONDS:-60}))
  while
    pid=$(holders | head -1) # find itself fails where it may not look
    [[ -n $pid ]]
  do
    command=$(tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | cut -c 1-80)
    if [[ $command == *cdcd_jax.train* ]] && grep -qsz "^PLATFORM=$PLATFORM\$" "/proc/$pid/environ"; then # not one that was started by hand
      say "process $pid of an earlier life still holds the device: killed."
      kill -s KILL "$pid"
    elif ((SECONDS >= end)); then
      say "error: process $pid ($command) on $(hostname) holds the device: end it there with kill $pid."
      exit 75
    fi
    sleep 1
  done
}

finish() {
  if [[ -n ${CODES-} ]]; then echo "$1 $told" >"$CODES/${SLURM_PROCID:-0}.code"; fi
  exit "$1"
}

told="" # whether this process was told to stop: a pre-emption, and no failure of its own
child=""
# shellcheck disable=SC2329 # the trap calls it
pass_on() {
  told=told
  child=${child:-${!-}} # it may come between the start and the next line
  if [[ -n $child ]]; then kill -s TERM "$child" 2>/dev/null; else finish 75; fi
}
trap pass_on TERM

(wait_for_devices) || finish $?
python=${PYTHON:-$root/.venv/bin/python}
command -v "$python" >/dev/null || {
  say "error: there is no $python on $(hostname): install the project there first."
  finish 2
}
cd "$root" || finish 2
"$python" -u -m cdcd_jax.train "$@" &
child=$!
# Slurm sends TERM to this process and to the trainer at once, and a `wait` that is interrupted while the child ends may lose its code.
while kill -0 "$child" 2>/dev/null; do sleep 0.2; done
wait "$child"
code=$?

# Kubernetes looks at the pod that fails first. The one that was told to stop must be it, or a pre-emption counts as a failure of the others.
[[ $code == 75 && -z $told && $PLATFORM == gke ]] && sleep "${YIELD_SECONDS:-10}"
finish "$code"
