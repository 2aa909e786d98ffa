#!/usr/bin/env bash
# One training job on the GPU nodes of a Slurm cluster, by launch/slurm.sbatch. On a login node, in a folder that all nodes see.
#
#   launch/slurm.sh setup [--accelerator=cuda12]                                       installs the project into .venv
#   launch/slurm.sh run --name=N --nodes=2 --gpus=8 [...] -- --config=C --workdir=W    queues the job: one process for each of the GPUs of each node
#   launch/slurm.sh logs | delete --name=N
#
# Each with --dry-run, which prints the commands and calls none. More options of run: --time=T, --partition=P, --account=A, --qos=Q, --cpus=N (for
# each process), --max-restarts=K (3). W is a folder that all nodes see, or in a bucket.
#
# Slurm queues the job again, K times at most, when a process ends with 75 or is killed; a pre-emption or the end of its time does not count; 1 (an
# error of the program) or 2 (a user's mistake) ends it. The last lines of the process that failed stand in slurm/N-JOB.out, which logs shows.

# shellcheck disable=SC2154 # read_options sets opt_...
set -uo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
shopt -s extglob nullglob

verb=${1-}
(($#)) && shift
case $verb in
setup) read_options "accelerator=" "$@" ;;
run) read_options "name= nodes= gpus= time= partition= account= qos= cpus= max-restarts=" "$@" ;;
logs | delete) read_options "name=" "$@" ;;
-h | --help) help && exit 0 ;;
*) die "usage: launch/slurm.sh setup|run|logs|delete --name=N ..., not '$verb' (--help tells more)." ;;
esac
only_run_takes_flags "$verb"
slurms="this is no login node of a Slurm cluster, or Slurm's commands are not on PATH (module load slurm)."
if [[ $verb != setup ]]; then
  required name
  case $verb in run) need sbatch "$slurms" ;; delete) need scancel "$slurms" ;; esac
fi
make_scratch
removal="launch/slurm.sh delete --name=${opt_name-}"

# Of a time as sbatch takes it: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S.
minutes() {
  local days=0 first second third
  [[ $1 != *-* ]] || days=${1%%-*}
  IFS=: read -r first second third <<<"${1#*-}"
  if [[ $1 == *-* || -n $third ]]; then
    echo $((10#$days * 1440 + 10#$first * 60 + 10#${second:-0}))
  else
    echo $((10#$first))
  fi
}

jobs_of_name() {
  squeue --me --noheader --name="$opt_name" --format=%i
}

case $verb in
setup)
  check_accelerator "${opt_accelerator:=cuda12}"
  "$launch/install.sh" ${opt_dry_run:+--dry-run} "$opt_accelerator"
  ;;
run)
  required nodes gpus
  check_count --nodes "$opt_nodes" 1
  check_count --gpus "$opt_gpus" 1
  check_count --max-restarts "${opt_max_restarts:=3}" 0
  [[ -z $opt_cpus ]] || check_count --cpus "$opt_cpus" 1
  [[ $opt_time =~ ^(0|[A-Z]*)$ ]] || (($(minutes "$opt_time") >= 10)) || # 0 is no limit
    die "--time=$opt_time is $(minutes "$opt_time") min to Slurm, of which the last three are for saving: give at least 10, or hours as 24:00:00."
  check_trainer_flags "" $((opt_nodes * opt_gpus))
  [[ ! $workdir =~ ^/(tmp|var/tmp|dev/shm)(/|$) ]] ||
    die "--workdir=$workdir is another folder on each node: name one that all nodes see, as runs/$opt_name."
  [[ $workdir == *://* || $workdir == /* ]] || say "the workdir $workdir is under $root: all nodes must see it."
  if [[ -n $opt_dry_run ]]; then
    quoted squeue --me --noheader --name="$opt_name" --format=%i
  else
    [[ -x $root/.venv/bin/python ]] || die "the project is not installed in $root/.venv: launch/slurm.sh setup."
    taken=$(jobs_of_name)
    [[ -z $taken ]] || die "the name $opt_name is taken by your job ${taken//$'\n'/ }: choose another, or cancel that one with: $removal."
  fi
  act mkdir -p "$root/slurm" || die "$root/slurm cannot be made."
  try_to "queue the job $opt_name" "$removal" sbatch --job-name="$opt_name" --chdir="$root" \
    --output="$root/slurm/%x-%j.out" --nodes="$opt_nodes" --ntasks-per-node="$opt_gpus" --gpus-per-node="$opt_gpus" \
    ${opt_cpus:+--cpus-per-task="$opt_cpus"} ${opt_time:+--time="$opt_time"} ${opt_partition:+--partition="$opt_partition"} \
    ${opt_account:+--account="$opt_account"} ${opt_qos:+--qos="$opt_qos"} "$launch/slurm.sbatch" --max-restarts="$opt_max_restarts" "${ARGS[@]}"
  note "which runs on the first node, and has srun run launch/worker.sh for each GPU, until it ends or is queued again"
  ;;
logs)
  found=("$root/slurm/$opt_name"-+([0-9]).out) # after the name comes the number of the job: another one's name may begin like this one's
  [[ -z $opt_dry_run ]] || found=("${found[@]-$root/slurm/$opt_name-JOB.out}") # JOB: the number that sbatch will give it
  ((${#found[@]})) || die "the job $opt_name has written nothing yet: squeue --me tells why."
  act tail -n 40 "${found[@]}"
  ;;
delete) try_to "cancel the job $opt_name" "$removal" scancel --me --name="$opt_name" ;;
esac
