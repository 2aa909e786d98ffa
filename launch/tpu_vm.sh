#!/usr/bin/env bash
# One training job on Cloud TPU VMs: all workers of one slice, or of several.
#
#   launch/tpu_vm.sh create --name=N --zone=Z --topology=v5e:4x4 [--slices=S] [--spot | --reserved]     asks for the TPUs, and waits for them
#   launch/tpu_vm.sh setup  --name=N --zone=Z [--slices=S]                                              copies the project there and installs it
#   launch/tpu_vm.sh run    --name=N --zone=Z --topology=v5e:4x4 [...] -- --config=C --workdir=gs://... trains, and starts again what was pre-empted
#   launch/tpu_vm.sh logs | stop | delete --name=N --zone=Z [--slices=S]
#
# Each with --dry-run, which prints the commands and calls none. More options: --project=P; for create and run also --runtime=IMAGE,
# --service-account=A, --network=N, --subnetwork=N; for run --max-restarts=K (3). `run` wants what `create` was given, because it makes TPUs anew
# that were taken: without --spot they would be on demand. Of --slices it tells the trainer.
#
# `run` ends with 0 when all workers end with 0; with 1 (an error of the program) or 2 (a user's mistake) as soon as one of them does, never tried
# again, after that worker's last lines; starts all again, K times at most, when one ends with 75 or is killed; and makes the TPUs anew when the
# platform took them, which does not count. A lost connection is no failure: the job runs detached. Ctrl-C stops the job, which saves first, and ends
# with 75. Closing the terminal leaves it running, and the same command watches it again.

# shellcheck disable=SC2154 # read_options sets opt_...
set -uo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
# shellcheck source=launch/tpu_asking.sh
source "$launch/tpu_asking.sh"

patience=${PATIENCE:-1800} # seconds without any contact, while the platform calls the machines ready
first_patience=${FIRST_PATIENCE:-120} # the same before the first start, when the reason may be a key that is not there
on_vm="bash cdcd_jax/launch/on_vm.sh"

verb=${1-}
(($#)) && shift
shared="name= zone= project= slices="
request="$shared topology= spot reserved runtime= service-account= network= subnetwork="
case $verb in
create) read_options "$request" "$@" ;;
setup | logs | stop | delete) read_options "$shared" "$@" ;;
run) read_options "$request max-restarts=" "$@" ;;
-h | --help) help && exit 0 ;;
*) die "usage: launch/tpu_vm.sh create|setup|run|logs|stop|delete --name=N --zone=Z ..., not '$verb' (--help tells more)." ;;
esac
required name zone
check_count --slices "${opt_slices:=1}" 1
if [[ $verb == create || $verb == run ]]; then
  required topology
  [[ -z $opt_spot || -z $opt_reserved ]] || die "--spot and --reserved exclude each other."
  tpu "$opt_topology"
fi
if [[ $verb == run ]]; then
  check_count --max-restarts "${opt_max_restarts:=3}" 0
  check_trainer_flags gs:// $((chips * opt_slices))
fi
only_run_takes_flags "$verb"
need gcloud "install it from https://cloud.google.com/sdk/docs/install, then gcloud init."
make_scratch

name=$opt_name
where=(--zone="$opt_zone" ${opt_project:+--project="$opt_project"} --quiet)
nodes=("$name")
mine="--name=$name --zone=$opt_zone${opt_project:+ --project=$opt_project}"
if ((opt_slices > 1)); then
  mine="$mine --slices=$opt_slices"
  nodes=()
  for ((index = 0; index < opt_slices; index++)); do nodes+=("$name-$index"); done
fi
removal="launch/tpu_vm.sh delete $mine"
again="$mine --topology=${opt_topology:-...}${opt_spot:+ --spot}${opt_reserved:+ --reserved}${opt_runtime:+ --runtime=$opt_runtime}"
again+="${opt_service_account:+ --service-account=$opt_service_account}${opt_network:+ --network=$opt_network}"
again+="${opt_subnetwork:+ --subnetwork=$opt_subnetwork}"
absent="there is no TPU named $name in $opt_zone: launch/tpu_vm.sh create $again makes it (where there are several slices, all commands want \
--slices=S)."
[[ $verb != delete ]] || absent="there is no TPU named $name in $opt_zone, so nothing is to be deleted."
case $verb in setup | logs | stop | delete) absent_words=NOT_FOUND ;; esac # run itself deletes and makes anew

# Queued resources are one way for one slice and several, on demand, spot and reserved.
create() {
  local shape=(--node-id="$name")
  ((opt_slices == 1)) || shape=(--node-count="$opt_slices" --node-prefix="$name")
  try_to "ask for $name in $opt_zone" "$removal" gcloud compute tpus queued-resources create "$name" "${where[@]}" "${shape[@]}" \
    --accelerator-type="$accelerator" --runtime-version="${opt_runtime:-$runtime}" --scopes=https://www.googleapis.com/auth/cloud-platform \
    ${opt_spot:+--spot} ${opt_reserved:+--reserved} ${opt_service_account:+--service-account="$opt_service_account"} \
    ${opt_network:+--network="$opt_network"} ${opt_subnetwork:+--subnetwork="$opt_subnetwork"}
  wait_for_tpus
}

# The request has been made: from here on whoever leaves must say how to remove it.
wait_for_tpus() {
  local answer state="" reason
  local ask=(gcloud compute tpus queued-resources describe "$name" "${where[@]}" "--format=value(state.state,state.failedData.error.message)")
  if [[ -n $opt_dry_run ]]; then
    note "every half minute, until it says ACTIVE:"
    quoted "${ask[@]}"
    return
  fi
  trap 'say "the request for $name stays: remove it with $removal"; exit 130' INT TERM
  while [[ $state != ACTIVE ]]; do
    if answer=$("${ask[@]}" 2>"$scratch/words"); then
      reason=$(tr -s '[:space:]' ' ' <<<"${answer#*$'\t'}")
      answer=${answer%%$'\t'*}
      [[ $answer == "$state" ]] || say "$name: $answer"
      state=$answer
    else
      answer=$(words_of "$scratch/words")
      [[ $answer != *NOT_FOUND* && $answer != *"not found"* ]] || die "the request for $name in $opt_zone is gone: somebody deleted it ($answer)."
      say "no answer about $name ($answer): asking again."
    fi
    case $state in
    ACTIVE) ;;
    FAILED | SUSPENDED | SUSPENDING | DELETING)
      die "$name was not made in $opt_zone ($state: ${reason% }); $(hint_for "$reason" "$removal"); remove the request with $removal."
      ;;
    *) sleep "${PAUSE:-30}" ;;
    esac
  done
  trap - INT TERM
}

delete() {
  note "the request, and its TPUs with it:"
  try_to "delete $name in $opt_zone" "$removal" gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force
}

setup() {
  local node
  # shellcheck disable=SC2086 # a list of words
  act tar -C "$root" -czf "$scratch/cdcd_jax.tar.gz" $shipped || die "could not pack the project."
  for node in "${nodes[@]}"; do
    try_to "copy the project to $node (its TPUs cost: $removal)" "$removal" \
      gcloud compute tpus tpu-vm scp "$scratch/cdcd_jax.tar.gz" "$node:cdcd_jax.tar.gz" --worker=all "${where[@]}"
    try_to "install the project on $node (its TPUs cost: $removal)" "$removal" gcloud compute tpus tpu-vm ssh "$node" --worker=all "${where[@]}" \
      --command="mkdir -p cdcd_jax && tar -xzf cdcd_jax.tar.gz -C cdcd_jax && bash cdcd_jax/launch/install.sh tpu"
  done
}

# After a call that failed. That a key of ssh's is not there reads alike.
say_not_set_up() {
  ! grep -q "on_vm\.sh: No such file" "$scratch/words" || die "$name has not been set up: launch/tpu_vm.sh setup $mine"
}

# Starts a life on all workers. Sets life, which may be one that runs there already. The same call again starts nothing twice.
start() {
  local answer answers running busy stopped told others=""
  : "${fresh:=$(date +%s).$$.$((lives += 1))}" # no other launcher has the same
  on_workers "$on_vm start $fresh ${life:-none} $(printf '%q ' "${ARGS[@]}")" || {
    say_not_set_up
    return 1
  }
  sort_out || return 1
  ((stopped == 0)) || { on_workers "$on_vm stop $fresh TERM" && stopped_by_user; }
  ((busy == 0)) || die "another job runs on $name: launch/tpu_vm.sh logs $mine shows it, and stop ends it."
  for answer in $answers; do
    [[ ${answer#*=} == "$fresh" ]] || others=${answer#*=}
  done
  life=${others:-$fresh}
  [[ -n $others ]] || return 0
  say "this job runs on $name already: watching it."
  # Where it has ended already, the call above has started it again. What it ended with there is still to be judged.
  [[ " $answers" != *"=$fresh "* ]] || on_workers "$on_vm stop $fresh KILL"
}

# Waits until the life has ended on all workers. Sets answers (HOST=CODE ...) and told. Fails when the workers cannot be reached and are not ready.
watch() {
  local deadline="" seconds=${POLL:-20} lost="" running="" busy stopped all
  while :; do
    if [[ $stopping == asked ]] && on_workers "$on_vm stop $life TERM"; then
      stopping=told
    fi
    if watching=yes && on_workers "$on_vm wait $life $seconds" && sort_out; then
      lost=""
      ((running)) || break
      read -ra all <<<"$answers"
      ((running < ${#all[@]})) || continue
      seconds=2
      [[ -n $deadline ]] || deadline=$((SECONDS + grace))
      ((SECONDS < deadline)) && continue
      say "$running of ${#all[@]} workers did not end within $grace s of the others: killed."
      watching="" && on_workers "$on_vm stop $life KILL"
    elif [[ -n $interrupted ]]; then
      interrupted="" # the call was ended by Ctrl-C, and says nothing
    else
      bear "$patience" || break
    fi
  done
  watching=""
  [[ ${running:-1} == 0 ]]
}

interrupt() {
  [[ -z $stopping ]] || { say "leaving; the workers end by themselves: launch/tpu_vm.sh logs $mine" && exit 130; }
  say "telling all workers to stop: they save first (once more: leaves at once)"
  stopping=asked interrupted=yes
  [[ -z $watching ]] || kill ${calls[@]+"${calls[@]}"} 2>/dev/null
}

# Waits for a clear state of TPUs that cannot be reached, or whose workers were told to stop, and makes them anew if they were taken. Fails when they
# are all right; $1 is for how many seconds that is not believed: workers hear of a pre-emption before the platform shows it.
recreate() {
  local began=$SECONDS state limit latest=ready
  while
    state=$(state_of_tpus) # nothing, when Ctrl-C ended the question
    case ${state:-unknown} in
    unknown) limit=$patience ;; # also while a request that lost its TPUs is SUSPENDING, which takes minutes
    ready) limit=$1 ;;
    *) limit=0 ;;
    esac
    ((SECONDS - began < limit))
  do
    [[ ${state:-unknown} == "$latest" ]] || say "$name is ${state:-unknown} to the platform: waiting for a clear word, up to $limit s"
    latest=${state:-unknown}
    sleep "${PAUSE:-10}"
  done
  case $state in
  taken) ;;
  ready) return 1 ;;
  deleted) die "$absent" ;;
  *)
    die "the platform gave no clear state for $name for $((SECONDS - began)) s: gcloud compute tpus tpu-vm describe ${nodes[0]} ${where[*]} asks it, \
and $removal removes all."
    ;;
  esac
  [[ -z $stopping ]] || { say "the platform took $name: the same command makes it anew, and goes on; $removal removes the request" && exit 75; }
  say "the platform took $name: making it anew (this does not count as a restart)"
  delete
  create
  setup
  trap interrupt INT TERM
}

stopped_by_user() {
  say "stopped by launch/tpu_vm.sh stop, or by Ctrl-C in another terminal: not started again; the same command goes on"
  leave 75
}

leave() {
  say "the TPUs are still there: $removal removes them"
  exit "$1"
}

run() {
  local restarts=0 code host pairs answers told lost="" life="" fresh=""
  lives=0 stopping="" interrupted="" watching="" calls=()
  check_access
  trap interrupt INT TERM
  while :; do
    until start; do
      if [[ -n $interrupted ]]; then # whether it was started is not known: the same call again tells
        interrupted=""
      else
        bear $((lives > 1 ? patience : first_patience)) || { recreate 0 && fresh="" life=""; }
      fi
    done
    fresh="" lost=""
    # Where they came back by themselves, the same life is watched on: on some it may still run, and on others have ended for good.
    until watch; do recreate 0 && life="" && continue 2; done
    read -ra pairs <<<"$answers"
    code=$(verdict "${pairs[@]##*=}")
    say "workers ended with ${pairs[*]##*=}"
    [[ $code != 75 || $told != *stopped* || -n $stopping ]] || stopped_by_user
    if [[ $code != 0 && -z $stopping ]]; then
      host=$(culprit "$code" "${pairs[@]}")
      on_workers "$on_vm tail $life $last_lines" && say "the last lines of $host:" && grep -F "[$host] " "$scratch/said" >&2
    fi
    [[ $code == 75 && -z $stopping ]] || leave "$code"
    # A machine that is taken hears of it first; the platform's own word follows.
    if [[ -n $told ]]; then
      recreate "${TAKEN_SECONDS:-120}" && life="" && continue
      say "something told a worker to stop: starting all again (this does not count as a restart)"
    else
      ((restarts < opt_max_restarts)) || leave "$code"
      restarts=$((restarts + 1))
      say "starting all workers again ($restarts of at most $opt_max_restarts times)"
    fi
  done
}

show_run() {
  local node
  note "whether the platform answers at all:"
  quoted gcloud compute tpus queued-resources describe "$name" "${where[@]}" "--format=value(state.state)"
  note "starts the job on all workers, detached (BEFORE is the life before it, or none):"
  on_workers "$on_vm start LIFE BEFORE $(printf '%q ' "${ARGS[@]}")"
  note "again and again, until it has ended on one of them, and then on all of them:"
  on_workers "$on_vm wait LIFE ${POLL:-20}"
  on_workers "$on_vm wait LIFE 2"
  note "Ctrl-C:"
  on_workers "$on_vm stop LIFE TERM"
  note "some have not ended $grace s after another one:"
  on_workers "$on_vm stop LIFE KILL"
  note "one ended with 1 or 2: its last $last_lines lines, and the end; one ended with 75 or was killed: the same, then all again," \
    "$opt_max_restarts times at most:"
  on_workers "$on_vm tail LIFE $last_lines"
  note "cannot be reached: asks the platform; where that took the TPUs, they are made anew, and the job is started there:"
  for node in "${nodes[@]}"; do quoted gcloud compute tpus tpu-vm describe "$node" "${where[@]}" "--format=value(state)"; done
  quoted gcloud compute tpus queued-resources describe "$name" "${where[@]}" "--format=value(state.state)"
  delete
  create
  setup
}

case $verb in
create | setup | delete) "$verb" ;;
run) if [[ -n $opt_dry_run ]]; then show_run; else run; fi ;;
logs | stop)
  word="tail last 40"
  [[ $verb == logs ]] || word="stop last TERM"
  on_workers "$on_vm $word" || {
    say_absent
    say_not_set_up
    words=$(words_of "$scratch/words")
    die "could not reach $name: $words; $(hint_for "$words" "$removal")."
  }
  [[ -n $opt_dry_run ]] || cat "$scratch/said"
  ;;
esac
