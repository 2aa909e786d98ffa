#!/usr/bin/env bash
# Runs N real processes of `python -m cdcd_jax.train ARGS...` on this machine, as N hosts would, and starts them again when they ask for it.
#
#   launch/local_multihost.sh [--max-restarts=K] N ARGS...
#
# Each process's lines are prefixed with its number. Ends with 0 when all end with 0; with 1 or 2 as soon as one of them does (a user's mistake, never
# tried again); starts all of them again, K times at most (3 by default), when one ends with 75 or is killed; and ends with their code after that.
# Ctrl-C and SIGTERM are passed on, and nothing is started again after them. PYTHON names the interpreter (.venv's by default).
# GRACE is how many seconds the others get once one has ended (20 by default) before they are killed.
set -uo pipefail

die() {
  echo "error: $1" >&2
  exit 2
}

max_restarts=3
while [[ ${1-} == --* ]]; do
  case $1 in
  --max-restarts=*) max_restarts=${1#*=} ;;
  *) die "unknown option $1 before the number of processes (known: --max-restarts=K)." ;;
  esac
  shift
done
[[ ${1-} =~ ^[1-9][0-9]*$ ]] || die "usage: launch/local_multihost.sh [--max-restarts=K] N ARGS..., where N is how many processes to run, not '${1-}'."
[[ $max_restarts =~ ^[0-9]+$ ]] || die "--max-restarts=$max_restarts must be a whole number."
count=$1
shift

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
command -v "$python" >/dev/null || die "there is no $python: run make install first, or name an interpreter in PYTHON."
grace=${GRACE:-20}

pids=()
stopping=""

# Another process of this machine may take the port before process 0 does; then that attempt ends, and the next takes another.
free_port() {
  "$python" -c 'import socket; s = socket.socket(); s.bind(("localhost", 0)); print(s.getsockname()[1])'
}

forward() {
  stopping=$1
  for pid in "${pids[@]}"; do kill -s "$1" "$pid" 2>/dev/null; done
}
trap 'forward TERM' TERM
trap 'forward INT' INT

run_all() {
  local port index
  port=$(free_port) || die "no free port."
  pids=()
  for ((index = 0; index < count; index++)); do
    # A new session: Ctrl-C reaches a process only through the trap above, once.
    JAX_COORDINATOR_ADDRESS=localhost:$port JAX_NUM_PROCESSES=$count JAX_PROCESS_ID=$index PYTHONUNBUFFERED=1 \
      setsid "$python" -m cdcd_jax.train "$@" > >(sed -u "s/^/[$index] /") 2> >(sed -u "s/^/[$index] /" >&2) &
    pids+=($!)
  done
}

# Waits until all have ended, and kills those that have not when others have been gone for $grace seconds. Sets codes.
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
        echo "[$index] did not end within $grace s of the others: killed." >&2
        kill -s KILL "${pids[index]}" 2>/dev/null
      done
    fi
    sleep 0.2
  done
}

# The job's code: 1 or 2 if any process ended so, else 130 (Ctrl-C), else any other failure's, else 75 (asked for, or killed by a signal), else 0.
verdict() {
  local code again=0 failed=0
  for code in "${codes[@]}"; do
    case $code in
    0) ;;
    1 | 2) echo "$code" && return ;;
    130) failed=130 ;;
    75 | 12[89] | 1[3-9]?) again=75 ;;
    *) ((failed)) || failed=$code ;;
    esac
  done
  echo $((failed ? failed : again))
}

restarts=0
while :; do
  run_all "$@"
  [[ -n $stopping ]] && forward "$stopping" # it came while they were being started
  collect
  code=$(verdict)
  echo "processes ended with ${codes[*]}" >&2
  if ((code != 75)) || [[ -n $stopping ]] || ((restarts >= max_restarts)); then
    exit "$code"
  fi
  restarts=$((restarts + 1))
  echo "starting all $count again ($restarts of at most $max_restarts times)" >&2
done
