#!/usr/bin/env bash
# One training job on GKE by xpk, which makes the cluster and its TPU slices as well.
#
#   launch/gke/xpk.sh create --cluster=C --zone=Z --topology=v5e:4x4 [--slices=S] [--spot | --reservation=R]     makes the cluster and its node pools
#   launch/gke/xpk.sh run --name=N --cluster=C --zone=Z --topology=v5e:4x4 --image=I [...] -- --config=C --workdir=gs://...
#   launch/gke/xpk.sh logs | delete --name=N --cluster=C --zone=Z                                                 the job
#   launch/gke/xpk.sh delete-cluster --cluster=C --zone=Z
#
# Each with --dry-run, which prints the commands and calls none. The image comes from launch/image.sh. More options: --project=P; for run --slices=S,
# --max-restarts=K (20). Of --slices the trainer is told.
#
# Kubernetes starts the job again, K times at most, when a pod ends with 75, is killed or is pre-empted (xpk counts all of these), and, by xpk's own
# rule, when it ends with 42 or 127 to 255; any other code ends the job. `run` watches, and ends with the job's code after the last lines of the pod
# that failed; Ctrl-C ends only the watching, with 130.

# shellcheck disable=SC2154 # read_options sets opt_...
set -uo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source=launch/common.sh
source "$here/../common.sh"
# shellcheck source=launch/gke/jobs.sh
source "$here/jobs.sh"

verb=${1-}
(($#)) && shift
shared="cluster= zone= project="
case $verb in
create) read_options "$shared topology= slices= spot reservation=" "$@" ;;
run) read_options "$shared name= topology= slices= image= max-restarts=" "$@" ;;
logs | delete) read_options "$shared name=" "$@" ;;
delete-cluster) read_options "$shared" "$@" ;;
-h | --help) help && exit 0 ;;
*) die "usage: launch/gke/xpk.sh create|run|logs|delete|delete-cluster --cluster=C --zone=Z ..., not '$verb' (--help tells more)." ;;
esac
required cluster zone
only_run_takes_flags "$verb"
where=(--cluster="$opt_cluster" --zone="$opt_zone" ${opt_project:+--project="$opt_project"})
cluster="--cluster=$opt_cluster --zone=$opt_zone${opt_project:+ --project=$opt_project}"
removal="launch/gke/xpk.sh delete --name=${opt_name-} $cluster"
if [[ $verb == run || $verb == logs || $verb == delete ]]; then
  required name
  [[ $verb == run ]] || expect_job
fi
if [[ $verb == run || $verb == create ]]; then
  required topology
  check_count --slices "${opt_slices:=1}" 1
  on_gke
fi
if [[ $verb == run ]]; then
  required image
  check_count --max-restarts "${opt_max_restarts:=20}" 0
  check_trainer_flags gs:// $((chips * opt_slices))
fi
need xpk "install it with pip install xpk."
need kubectl "install it with gcloud components install kubectl."
make_scratch

# Whatever xpk is asked, it points kubectl at the cluster first; --quiet would overwrite a job of the same name, so it is not said where that matters.
case $verb in
create)
  [[ -z $opt_spot || -z $opt_reservation ]] || die "--spot and --reservation exclude each other."
  capacity=--on-demand
  [[ -z $opt_spot ]] || capacity=--spot
  [[ -z $opt_reservation ]] || capacity=--reservation=$opt_reservation
  try_to "make the cluster $opt_cluster in $opt_zone (what is there of it already goes with launch/gke/xpk.sh delete-cluster $cluster)" \
    "launch/gke/xpk.sh delete-cluster $cluster" xpk cluster create "${where[@]}" --tpu-type="$accelerator" --num-slices="$opt_slices" "$capacity"
  ;;
run)
  try_to "reach the cluster $opt_cluster" "$removal" xpk workload list "${where[@]}" --filter-by-job="$opt_name"
  check_free
  try_to "create the job $opt_name" "$removal" xpk workload create "${where[@]}" --workload="$opt_name" --tpu-type="$accelerator" \
    --num-slices="$opt_slices" --docker-image="$opt_image" --env=PLATFORM=gke --max-restarts="$opt_max_restarts" --restart-on-exit-codes=75 \
    --termination-grace-period-seconds=120 --command="exec /cdcd_jax/launch/worker.sh $(quoted "${ARGS[@]}")"
  follow
  ;;
logs)
  try_to "reach the cluster $opt_cluster" "$removal" xpk workload list "${where[@]}" --filter-by-job="$opt_name"
  show_logs
  ;;
delete) try_to "delete the job $opt_name" "$removal" xpk workload delete "${where[@]}" --workload="$opt_name" --quiet ;;
delete-cluster) try_to "delete the cluster $opt_cluster" "launch/gke/xpk.sh delete-cluster $cluster" xpk cluster delete "${where[@]}" --quiet ;;
esac
