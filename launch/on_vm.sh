#!/usr/bin/env bash
# What launch/tpu_vm.sh calls on each TPU VM. A job runs detached from the connection, so that a lost connection ends nothing.
#
#   launch/on_vm.sh start LIFE BEFORE ARGS...   starts launch/worker.sh ARGS... once, whatever the number of calls, unless a job runs there, or the
#                                        user has stopped the life BEFORE it (or `none`)
#   launch/on_vm.sh wait LIFE SECONDS    returns when it has ended, or after so long; the first worker of a slice prints what is new in its log
#   launch/on_vm.sh stop LIFE TERM|KILL  ends it; TERM is the user's, and whoever watches the job hears of it
#   launch/on_vm.sh tail LIFE LINES      the end of its log; LIFE is a name, or `last`
#
# Each says "@ HOST WORD ..." for its caller: started, running, busy or stopped LIFE; ended CODE, and `told` if something told it to stop, `stopped`
# if that was the user. A code that is not 0 means that nothing was done.
set -uo pipefail
jobs=${JOBS:-$HOME/cdcd_jobs}
host=$(hostname)
verb=$1
life=$2
shift 2
# shellcheck disable=SC2012 # the names are ours: seconds since 1970
[[ $life == last ]] && life=$(ls -t "$jobs" 2>/dev/null | head -1)
folder=$jobs/$life

# $1: the folder of a life. After a restart of the machine its number may be another process's; right after its own start it is still named as this
# script is. Calls no other command, since it is asked ten times a second.
alive() {
  local pid word
  [[ ! -e $1/0.code && -e $1/pid ]] && read -r pid <"$1/pid" || return 1
  while IFS= read -r -d '' word; do
    [[ $word == */launch/worker.sh || $word == */launch/on_vm.sh ]] && return 0
  done 2>/dev/null <"/proc/$pid/cmdline"
  return 1
}

# Also ends the last line, which may be half written: what this script says itself must begin one.
label() {
  # shellcheck disable=SC1003 # the backslash is sed's
  sed -e "s/^/[$host] /" -e '$a\'
}

report() {
  local code=gone told="" # gone: killed whole, or the machine was started anew
  if [[ -e $folder/0.code ]]; then
    read -r code told <"$folder/0.code"
  elif alive "$folder"; then
    echo "@ $host running $life"
    return
  fi
  [[ ! -e $folder/stopped ]] || told=stopped # the trainer cannot know whether it was the platform or the user
  echo "@ $host ended $code $told"
}

case $verb in
start)
  before=$1
  shift
  mkdir -p "$jobs" || exit 1
  if [[ -e $jobs/$before/stopped ]]; then
    echo "@ $host stopped $before"
    exit 0
  fi
  if [[ ! -d $folder ]]; then
    for other in "$jobs"/*/; do
      if alive "$other"; then
        [[ $(printf '%q ' "$@") == "$(cat "$other/args")" ]] && word=running || word=busy
        echo "@ $host $word $(basename "$other")"
        exit 0
      fi
    done
    mkdir "$folder" && printf '%q ' "$@" >"$folder/args" || exit 1
    PLATFORM=tpu_vm CODES=$folder setsid "$(dirname "${BASH_SOURCE[0]}")/worker.sh" "$@" >"$folder/log" 2>&1 </dev/null &
    echo $! >"$folder/pid"
  fi
  echo "@ $host started $life"
  ;;
wait)
  end=$((SECONDS + $1))
  while alive "$folder" && ((SECONDS < end)); do sleep 0.1; done
  answer=$(report) # before the log is read, so that the last lines are there when it says that all is over
  if [[ $host != *-w-* || $host == *-w-0 ]]; then
    shown=$(cat "$folder/shown" 2>/dev/null || echo 0)
    if size=$(wc -c 2>/dev/null <"$folder/log"); then # this life may be one that never was on this machine
      tail -c +$((shown + 1)) "$folder/log" | head -c $((size - shown)) | label
      echo "$size" >"$folder/shown"
    fi
  fi
  echo "$answer"
  ;;
stop)
  [[ $1 == KILL || ! -d $folder ]] || touch "$folder/stopped" # also where it has just ended: it is not to be started again
  if alive "$folder"; then
    if [[ $1 == KILL ]]; then
      read -r pid <"$folder/pid"
      kill -s KILL -- "-$pid" 2>/dev/null || kill -s KILL "$pid" # right after its start it leads no group yet
      echo 137 >"$folder/0.code"
    else
      kill -s "$1" "$(cat "$folder/pid")" # worker.sh passes it on to the trainer alone, and not to what that started
    fi
  fi
  report
  ;;
tail)
  tail -n "$1" "$folder/log" 2>/dev/null | label
  report
  ;;
*) exit 1 ;;
esac
