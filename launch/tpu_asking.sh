# shellcheck shell=bash
# What launch/tpu_vm.sh asks the workers and the platform, for `source`: nodes, where, name, mine and removal are its.
# shellcheck disable=SC2034,SC2154 # read_options sets opt_..., and who sources this sets and reads the rest

# Runs a command on every worker of every slice at once. What they said is in $scratch/said; fails when any of them could not be reached.
on_workers() {
  local node call failed=0
  calls=()
  for node in "${nodes[@]}"; do
    call=(gcloud compute tpus tpu-vm ssh "$node" --worker=all "${where[@]}" "--command=$1")
    if [[ -n $opt_dry_run ]]; then
      quoted "${call[@]}"
    else
      rm -f "$scratch/$node.said" # what an interrupted call still says must not come into this one's
      "${call[@]}" </dev/null >"$scratch/$node.said" 2>"$scratch/$node.words" &
      calls+=($!)
    fi
  done
  [[ -z $opt_dry_run ]] || return 0
  for call in "${calls[@]}"; do
    until wait "$call"; do # it failed, or a signal came
      kill -0 "$call" 2>/dev/null || { failed=1 && break; }
    done
  done
  calls=()
  (cd "$scratch" && cat "${nodes[@]/%/.said}" >said && cat "${nodes[@]/%/.words}" >words)
  return "$failed"
}

# Prints what the job itself said in the last call, and sets what the workers answered: how many are running, busy or were stopped, and what of
# (HOST=LIFE or HOST=CODE ...) and told. No other command is called for it: Ctrl-C ends that as well, and half an answer would be taken for the whole.
sort_out() {
  local node line host word value mark
  answers="" running=0 busy=0 stopped=0 told=""
  for node in "${nodes[@]}"; do
    while IFS= read -r line; do
      if [[ $line != "@ "* ]]; then
        printf '%s\n' "$line"
        continue
      fi
      read -r _ host word value mark <<<"$line"
      [[ $word != running ]] || running=$((running + 1))
      [[ $word != busy ]] || busy=$((busy + 1))
      [[ $word != stopped ]] || stopped=$((stopped + 1))
      answers+="$host=$value "
      told+=$mark
    done <"$scratch/$node.said"
  done
  [[ -n $answers ]]
}

# After a call that did not reach all workers: waits a while where the platform calls them ready, for $1 seconds in all since $lost, and fails where
# it does not.
bear() {
  local words hint
  [[ $(state_of_tpus) == ready ]] || return 1
  : "${lost:=$SECONDS}"
  words=$(words_of "$scratch/words")
  hint=$(hint_for "$words" "$removal")
  [[ $hint == nothing* ]] || words="$words; $hint"
  ((SECONDS - lost < $1)) || die "no contact with $name for $1 s ($words), though the platform calls it ready: its job may \
run there; launch/tpu_vm.sh stop $mine ends it, and $removal removes all."
  say "no contact with $name ($words), which the platform calls ready: what runs there goes on; trying again."
  sleep "${PAUSE:-15}"
}

# What no waiting mends, such as nobody being logged in, is said before anything else. That there is no such request is not for this to judge.
check_access() {
  local words
  gcloud compute tpus queued-resources describe "$name" "${where[@]}" "--format=value(state.state)" </dev/null >/dev/null 2>"$scratch/words" && return
  words=$(words_of "$scratch/words")
  [[ $words == *NOT_FOUND* || $words == *"not found"* ]] || die "could not ask for $name in $opt_zone: $words; $(hint_for "$words" "$removal")."
}

# ready, taken (by the platform), deleted (by somebody), or unknown (under repair, or no answer).
state_of_tpus() {
  local node state
  for node in "${nodes[@]}"; do
    state=$(gcloud compute tpus tpu-vm describe "$node" "${where[@]}" "--format=value(state)" 2>&1) || state="no: $state"
    case $state in
    READY) continue ;;
    PREEMPTED | TERMINATED | STOPPED | STOPPING | DELETING | HIDING | HIDDEN | "no: "*NOT_FOUND* | "no: "*"not found"*) ;;
    *) echo unknown && return ;;
    esac
    # The request outlives TPUs that were taken. Where it is gone as well, somebody meant it.
    state=$(gcloud compute tpus queued-resources describe "$name" "${where[@]}" "--format=value(state.state)" 2>&1) || state="no: $state"
    case $state in
    DELETING | "no: "*NOT_FOUND* | "no: "*"not found"*) echo deleted ;;
    SUSPENDING | "no: "*) echo unknown ;; # it can be deleted only when it is suspended
    *) echo taken ;;
    esac
    return
  done
  echo ready
}
