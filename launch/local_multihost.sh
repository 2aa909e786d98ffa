#!/usr/bin/env bash
# Runs N real processes of `python -m cdcd_jax.train ARGS...` on this machine, as N hosts would, and starts them again when they ask for it.
#
#   launch/local_multihost.sh [--max-restarts=K] [--dry-run] N --config=C --workdir=W ...
#
# These two options may also stand after N, the number of processes.
# Each process's lines are prefixed with its number. Ends with 0 when all end with 0; with 1 (an error of the program) or 2 (a user's mistake) as soon
# as one of them does, never tried again; starts all of them again, K times at most (3 by default), when one ends with 75 or is killed; and ends with
# their code after that. Each Ctrl-C (130) and SIGTERM (75) is passed on, once, and nothing is started again after them. PYTHON names the interpreter
# (.venv's by default). GRACE is how many seconds the others get once one has ended (20 by default) before they are killed.
set -uo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
set -m # each process is a group of its own: Ctrl-C reaches it only through the trap below, and is not ignored as in a script's other children

max_restarts=3
opt_dry_run=""
count=""
ARGS=()
for word in "$@"; do
  case $word in
  --max-restarts=*) max_restarts=${word#*=} ;;
  --dry-run) opt_dry_run=yes ;;
  --help | -h) help && exit 0 ;;
  --) ;; # where other launchers want one
  *)
    if [[ -n $count ]]; then
      ARGS+=("$word")
    elif [[ $word == -* ]]; then
      die "unknown option $word before the number of processes: it takes --max-restarts=K, --dry-run and --help, and the trainer's flags after it."
    else
      count=$word
      [[ $count =~ ^[1-9][0-9]{0,3}$ ]] || break
    fi
    ;;
  esac
done
[[ $count =~ ^[1-9][0-9]{0,3}$ ]] || die "the number of processes must be a whole number from 1 to 9999, not '$count': \
launch/local_multihost.sh [--max-restarts=K] N ARGS..."
check_count --max-restarts "$max_restarts" 0

python=${PYTHON:-$root/.venv/bin/python}
place=$PWD
: "${CHECKER=$python}"
check_trainer_flags ""

# process PORT INDEX ARGS...: sets command, which runs one of the processes.
process() {
  command=(env "JAX_COORDINATOR_ADDRESS=localhost:$1" "JAX_NUM_PROCESSES=$count" "JAX_PROCESS_ID=$2" PYTHONUNBUFFERED=1
    "$python" -m cdcd_jax.train "${@:3}")
}

if [[ -n $opt_dry_run ]]; then
  note "all at once, with a free port of this machine:"
  for ((index = 0; index < count; index++)); do
    process PORT "$index" "${ARGS[@]}"
    quoted "${command[@]}"
  done
  note "one ended with 75 or was killed: all again, $max_restarts times at most"
  exit 0
fi
command -v "$python" >/dev/null || die "there is no $python: run make install first, or name an interpreter in PYTHON."

pids=()
passed=()
stopping=""

# Another process of this machine may take the port before process 0 does; then that attempt ends, and the next takes another.
free_port() {
  "$python" -c 'import socket; s = socket.socket(); s.bind(("localhost", 0)); print(s.getsockname()[1])'
}

forward() {
  local index
  stopping=$1
  for index in "${!pids[@]}"; do
    passed[index]=1
    kill -s "$1" "${pids[index]}" 2>/dev/null
  done
}
trap 'forward TERM' TERM
trap 'forward INT' INT

# Prefixes lines; Ctrl-C and SIGTERM go to the whole group of this script, and the last lines of the processes are still to come.
label() {
  trap '' INT TERM
  exec sed -u "s/^/[$1] /"
}

run_all() {
  local port index
  port=$(free_port)
  case $stopping in # it came before anything was started, and may have ended the line above
  INT) exit 130 ;;
  TERM) exit 75 ;;
  esac
  [[ -n $port ]] || die "no free port."
  pids=()
  passed=()
  for ((index = 0; index < count; index++)); do
    process "$port" "$index" "$@"
    "${command[@]}" </dev/null > >(label "$index") 2> >(label "$index" >&2) &
    pids+=($!)
  done
  if [[ -n $stopping ]]; then # it came while they were being started: for those that it did not reach
    for index in "${!pids[@]}"; do [[ -z ${passed[index]-} ]] && kill -s "$stopping" "${pids[index]}" 2>/dev/null; done
  fi
}

# Waits until all have ended, and kills those that have not when others have been gone for $grace seconds. Sets codes. Its own words go to stream 3:
# bash itself would tell at length on stderr of each process that a signal ended.
collect() {
  local deadline="" index left
  codes=()
  while :; do
    left=0
    for ((index = 0; index < count; index++)); do
      [[ -n ${codes[index]-} ]] && continue
      if kill -0 "${pids[index]}" 2>/dev/null; then
        left=$((left + 1))
      else
        wait "${pids[index]}"
        codes[index]=$?
        [[ -z $deadline ]] && deadline=$((SECONDS + grace))
      fi
    done
    ((left == 0)) && sleep 0.2 && return # the last lines are still on their way through sed
    if [[ -n $deadline ]] && ((SECONDS >= deadline)); then
      for ((index = 0; index < count; index++)); do
        [[ -n ${codes[index]-} ]] && continue
        echo "[$index] did not end within $grace s of the others: killed." >&3
        kill -s KILL "${pids[index]}" 2>/dev/null
      done
    fi
    sleep 0.2
  done
}

# How each process ended: its code, and the signal that it died of.
endings() {
  local code said=""
  for code in "${codes[@]}"; do
    said+=", $code"
    ((code > 128)) && said+=" (SIG$(kill -l $((code - 128)) 2>/dev/null))"
  done
  echo "${said#, }"
}

restarts=0
while :; do
  run_all "${ARGS[@]}"
  collect 3>&2 2>/dev/null
  code=$(verdict "${codes[@]}")
  say "processes ended with $(endings)"
  if ((code != 75)); then
    exit "$code"
  elif [[ -n $stopping ]]; then
    say "not started again after SIG$stopping; the same command goes on."
    exit "$code"
  elif ((restarts >= max_restarts)); then
    say "gave up after $restarts restarts (--max-restarts=$max_restarts), with $code; the same command goes on."
    exit "$code"
  fi
  restarts=$((restarts + 1))
  say "starting all $count again ($restarts of at most $max_restarts times)"
done
