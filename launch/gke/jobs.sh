# shellcheck shell=bash
# What launch/gke/xpk.sh and launch/gke/jobset.sh share, for `source`: both run a JobSet, and Kubernetes starts it again, not this machine.
# shellcheck disable=SC2034,SC2154 # read_options sets opt_..., and who sources this reads the rest

# on_gke: sets hosts (pods of a slice) and chips_per_host of --topology; every machine that xpk and this manifest ask for has four chips, or one.
on_gke() {
  tpu "$opt_topology"
  chips_per_host=4
  ((chips > 1)) || chips_per_host=1
  hosts=$((chips / chips_per_host))
  ((opt_slices == 1 || hosts > 1)) ||
    die "--slices=$opt_slices needs a topology of several hosts: GKE has no multislice of $opt_topology, which is one host."
}

kube() {
  act kubectl "$@" --namespace="${opt_namespace:-default}"
}

# The pods of the job as NAME=CODE; one that has not ended has no code, and is left out.
pods_and_codes() {
  kube get pods --selector="jobset.sigs.k8s.io/jobset-name=$opt_name" \
    '--output=jsonpath={range .items[*]}{.metadata.name}={.status.containerStatuses[0].state.terminated.exitCode}{"\n"}{end}'
}

check_free() {
  local found
  [[ -z $opt_dry_run ]] || { kube get jobset "$opt_name" --ignore-not-found --output=name && return; }
  found=$(kube get jobset "$opt_name" --ignore-not-found --output=name 2>"$scratch/words") ||
    die "could not ask the cluster for a job named $opt_name: $(words_of "$scratch/words"); $(hint_for "$(words_of "$scratch/words")" "$removal")."
  [[ -z $found ]] || die "the name $opt_name is taken by a job on this cluster: choose another, or remove that one with: $removal."
}

# Waits for the end of the job, says what changes, and ends with its code after the last lines of the pod that failed.
follow() {
  local state="" answer latest="" failures=0 code pod pairs=()
  local ask=(get jobset "$opt_name" '--output=jsonpath={.status.terminalState};{.status.restarts};{.status.conditions[?(@.type=="Failed")].message}')
  local waiting=(get pods --selector="jobset.sigs.k8s.io/jobset-name=$opt_name,batch.kubernetes.io/job-completion-index=0"
    '--output=jsonpath={range .items[*]}{.status.phase}: {.status.conditions[?(@.type=="PodScheduled")].message}{"\n"}{end}')
  if [[ -n $opt_dry_run ]]; then
    note "every half minute, until the first says Completed or Failed:"
    kube "${ask[@]}"
    kube "${waiting[@]}"
    note "where it failed, the code of each pod, and the last $last_lines lines of the one whose code it is:"
    pods_and_codes
    kube logs POD --tail="$last_lines"
    return
  fi
  trap 'say "the job $opt_name goes on without this terminal; end it with: $removal"; exit 130' INT TERM
  say "the job $opt_name is the cluster's from here on: it is started again there, and Ctrl-C only stops watching"
  while [[ $state != Completed && $state != Failed ]]; do
    if answer=$(kube "${ask[@]}" 2>"$scratch/words"); then
      failures=0
      state=${answer%%;*}
      answer="restarts: $(cut -d ';' -f 2 <<<"$answer"); $(kube "${waiting[@]}" 2>/dev/null | tr -s '\n ' ' ')"
      [[ $answer == "$latest" ]] || say "$opt_name: $answer"
      latest=$answer
    else
      grep -q "NotFound\|not found" "$scratch/words" && die "the job $opt_name is gone: somebody deleted it."
      ((failures += 1))
      ((failures < 40)) || die "no answer about $opt_name for a while ($(words_of "$scratch/words")): it may still run; end it with: $removal."
    fi
    [[ $state == Completed || $state == Failed ]] || sleep "${PAUSE:-30}"
  done
  [[ $state == Failed ]] || { say "$opt_name has ended well" && exit 0; }
  for pod in $(pods_and_codes 2>/dev/null | grep '=[0-9]'); do pairs+=("$pod"); done
  if ((${#pairs[@]} == 0)); then
    say "$opt_name has failed, and its pods are gone: $(kube "${ask[@]}" 2>/dev/null | cut -d ';' -f 3)"
    exit 1
  fi
  code=$(verdict "${pairs[@]##*=}")
  pod=$(culprit "$code" "${pairs[@]}")
  say "pods ended with ${pairs[*]##*=}; the last lines of $pod:"
  kube logs "$pod" --tail="$last_lines" >&2
  say "its pods are kept for a day; remove them with: $removal"
  exit "$code"
}

# For what asks about a job or ends it, but makes none.
expect_job() {
  absent="there is no job named $opt_name on this cluster, or it has no pods yet: run makes one."
  absent_words='NotFound.*jobset|^No resources found'
}

show_logs() {
  try_to "read the logs of $opt_name" "$removal" kubectl logs --selector="jobset.sigs.k8s.io/jobset-name=$opt_name" \
    --namespace="${opt_namespace:-default}" --tail=40 --prefix --max-log-requests=1000
  [[ -n $opt_dry_run ]] || say_absent # kubectl calls that no failure
}

delete_job() {
  try_to "delete the job $opt_name" "$removal" kubectl delete jobset "$opt_name" --namespace="${opt_namespace:-default}"
}
