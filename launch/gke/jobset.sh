#!/usr/bin/env bash
# One training job on a GKE cluster that kubectl points at, by launch/gke/jobset.yaml: TPU slices, one Job each.
#
#   launch/gke/jobset.sh setup                                                                    installs JobSet in the cluster
#   launch/gke/jobset.sh run --name=N --topology=v5e:4x4 --image=I [...] -- --config=C --workdir=gs://...
#   launch/gke/jobset.sh logs | delete --name=N
#
# Each with --dry-run, which prints the manifest and the commands, and calls none. The cluster needs a node pool of that topology for each slice, and
# the image comes from launch/image.sh. More options: --namespace=S (default); for run --slices=S, --spot, --service-account=A (the pods' in
# Kubernetes; who writes to the bucket, docs/LAUNCH.md tells), --max-restarts=K (3). Of --slices the trainer is told.
#
# Kubernetes starts the job again, K times at most, when a pod ends with 75 or is killed; a pre-emption does not count; any other code ends the job.
# `run` watches, and ends with the job's code after the last lines of the pod that failed; Ctrl-C ends only the watching, with 130.

# shellcheck disable=SC2154 # read_options sets opt_...
set -uo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source=launch/common.sh
source "$here/../common.sh"
# shellcheck source=launch/gke/jobs.sh
source "$here/jobs.sh"

verb=${1-}
(($#)) && shift
case $verb in
setup) read_options "" "$@" ;;
run) read_options "name= namespace= topology= slices= image= spot service-account= max-restarts=" "$@" ;;
logs | delete) read_options "name= namespace=" "$@" ;;
-h | --help) help && exit 0 ;;
*) die "usage: launch/gke/jobset.sh setup|run|logs|delete --name=N ..., not '$verb' (--help tells more)." ;;
esac
only_run_takes_flags "$verb"
removal="launch/gke/jobset.sh delete --name=${opt_name-}${opt_namespace:+ --namespace=$opt_namespace}"
if [[ $verb != setup ]]; then
  required name
  [[ $verb == run ]] || expect_job
fi
if [[ $verb == run ]]; then
  required topology image
  check_count --slices "${opt_slices:=1}" 1
  check service-account '^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$' "the name of one of Kubernetes in that namespace, and not Google's address"
  check_count --max-restarts "${opt_max_restarts:=3}" 0
  on_gke
  check_trainer_flags gs:// $((chips * opt_slices))
fi
need kubectl "install it with gcloud components install kubectl, then gcloud container clusters get-credentials CLUSTER --location=..."
make_scratch

# Codes that ask for another start besides 75: those of signals 0 to 31, but not 130, which is Ctrl-C's.
signals=$(printf ', %s' 128 129 {131..159})

# A list of words in YAML; JSON's strings are YAML's. Kubernetes would read $(NAME) as a variable.
as_list() {
  local word list=""
  for word in "$@"; do
    word=${word//\\/\\\\}
    word=${word//\"/\\\"}
    list="$list${list:+, }\"${word//\$(/\$\$(}\""
  done
  printf '[%s]\n' "$list"
}

manifest() {
  local line name spot=""
  [[ -z $opt_spot ]] || spot='"true"'
  while IFS= read -r line; do
    while [[ $line =~ \$\{([A-Z_]+)\} ]]; do
      name=${BASH_REMATCH[1]}
      case $name in
      NAME) value=$opt_name ;;
      NAMESPACE) value=${opt_namespace:-default} ;;
      MAX_RESTARTS) value=$opt_max_restarts ;;
      SLICES) value=$opt_slices ;;
      HOSTS) value=$hosts ;;
      SIGNALS) value=$signals ;;
      SERVICE_ACCOUNT) value=$opt_service_account ;;
      ACCELERATOR) value=$label ;;
      TOPOLOGY) value=$grid ;;
      SPOT) value=$spot ;;
      IMAGE) value=$opt_image ;;
      ARGS) # last on its line, because it may hold anything
        printf '%s%s\n' "${line%%\$\{ARGS\}*}" "$(as_list "${ARGS[@]}")"
        continue 2
        ;;
      CHIPS) value=$chips_per_host ;;
      *) die "launch/gke/jobset.yaml asks for \${$name}, which is not known." ;;
      esac
      [[ -n $value ]] || continue 2
      line=${line/"\${$name}"/"$value"}
    done
    printf '%s\n' "$line"
  done < <(grep -v '^#' "$here/jobset.yaml")
}

case $verb in
setup)
  try_to "install JobSet $jobset_version" "kubectl delete namespace jobset-system" kubectl apply --server-side \
    --filename="https://github.com/kubernetes-sigs/jobset/releases/download/$jobset_version/manifests.yaml"
  ;;
run)
  manifest >"$scratch/jobset.yaml" || exit
  check_free
  if [[ -n $opt_dry_run ]]; then
    cat "$scratch/jobset.yaml"
    note "the above is the file:"
  fi
  try_to "create the job $opt_name" "$removal" kubectl create --filename="$scratch/jobset.yaml"
  follow
  ;;
logs) show_logs ;;
delete) delete_job ;;
esac
