# shellcheck shell=bash
# What the launchers share, for `source`: how options are read, commands run or shown, the platform's refusals said, and exit codes judged.
# Written for bash 3.2 as well, which is what a Mac has.
# shellcheck disable=SC2034 # what is set here is read by those who source it

launch=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/refusals.sh
source "$launch/refusals.sh"
root=$(dirname "$launch")
place=$root # where the trainer starts, from which it finds a config
# What the machines get of the project: enough to install it and to run its doors. launch/Dockerfile.dockerignore says the same to Docker.
shipped="cdcd_jax configs launch setup.py pyproject.toml requirements.lock README.md LICENSE"

die() {
  echo "error: $1" >&2
  exit 2
}

say() {
  echo "$*" >&2
}

# The comment at the head of a launcher is its help.
help() {
  awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"
}

# read_options "name= zone= spot" "$@": sets opt_name and so on, and ARGS to what follows "--". Options that are not given are empty.
read_options() {
  local known="$1 dry-run help" name value word flags=""
  [[ ${verb-} != run ]] || flags=", and after -- the trainer's flags"
  shift
  for word in $known; do
    word=${word%=}
    printf -v "opt_${word//-/_}" ''
  done
  while (($#)) && [[ $1 != -- ]]; do
    [[ $1 == --* ]] || die "unexpected word '$1': options are written --name=value$flags."
    name=${1#--}
    name=${name%%=*}
    value=""
    if [[ " $known " == *" $name= "* ]]; then
      [[ $1 == *=?* ]] || die "--$name needs a value, as in --$name=..."
      value=${1#*=}
    elif [[ " $known " == *" $name "* ]]; then
      [[ $1 == *=* ]] && die "--$name takes no value, not '${1#*=}'."
      value=yes
    else
      known=$(for word in $known; do printf ' --%s' "${word/%=/=...}"; done)
      die "unknown option $1 (known:$known$flags)."
    fi
    printf -v "opt_${name//-/_}" '%s' "$value"
    shift
  done
  (($#)) && shift
  ARGS=("$@")
  if [[ -n $opt_help ]]; then
    help
    exit 0
  fi
  check_values
}

# check zone PATTERN "what it must be": the value of the option --zone, where the launcher has it and it was given.
check() {
  local name=opt_${1//-/_}
  [[ -z ${!name-} || ${!name} =~ $2 ]] || die "--$1=${!name} must be $3."
}

# What a machine, a cluster or a queue would refuse, and what would only be refused there after something was made.
check_values() {
  local option short="lower-case letters, digits and dashes, at most"
  for option in name cluster; do # these become part of the names of machines, pods and files
    check "$option" '^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$' "$short 40, beginning with a letter"
  done
  check namespace '^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$' "$short 63"
  [[ ! ${opt_zone-} =~ ^[a-z]+-[a-z]+[0-9]+$ ]] || die "--zone=$opt_zone is a region: name one of its zones, as $opt_zone-a."
  check zone '^[a-z]+-[a-z]+[0-9]+-[a-z0-9]+$' "a zone, as us-central1-a"
  local tag=':[A-Za-z0-9_][A-Za-z0-9_.-]*' digest='@sha256:[0-9a-f]{64}' image=${opt_image-}
  [[ -n ${opt_no_push-} ]] || check image "^[^[:space:]/@]+(/[^[:space:]/:@]+)+($tag|$digest|$tag$digest)\$" \
    "a place in a registry and a tag, as us-docker.pkg.dev/PROJECT/REPOSITORY/cdcd_jax:1"
  [[ -n ${opt_no_push-} || -n $opt_dry_run || ! ${image%@*} =~ [A-Z].*[/:] ]] ||
    die "--image=$image has capitals, which only a tag may have: put your project and repository in their place."
  check time '^([0-9]+(-[0-9]{1,2})?(:[0-9]{1,2}){0,2}|UNLIMITED|INFINITE)$' \
    "minutes (0: no limit), or written as 24:00:00 (hours) or 2-12:00:00 (two days and twelve hours)"
  for option in partition account qos; do check "$option" '^[^[:space:]]+$' "one word"; done
}

# only_run_takes_flags "$verb"
only_run_takes_flags() {
  [[ $1 == run || ${#ARGS[@]} == 0 ]] || die "only run takes the trainer's flags, not $1."
}

# required name zone: each of these options must have been given.
required() {
  local option name
  for option in "$@"; do
    name=opt_${option//-/_}
    [[ -n ${!name} ]] || die "--$option=... is missing: $(basename "$0") --help tells what it is."
  done
}

# check_count --nodes VALUE 1: a number that bash can count with, to which 08 is none.
check_count() {
  [[ $2 =~ ^(0|[1-9][0-9]{0,4})$ && $2 -ge $3 ]] || die "$1=$2 must be a whole number from $3 to 99999, without leading zeros."
}

grace=${GRACE:-20} # seconds that the others get once one process has ended
check_count GRACE "$grace" 0
last_lines=20

check_accelerator() {
  [[ " tpu cuda12 cuda13 cpu " == *" $1 "* ]] || die "--accelerator=$1 is none of tpu, cuda12, cuda13 and cpu."
}

# need gcloud "how to install it": with --dry-run nothing is called, so nothing is needed.
need() {
  [[ -n $opt_dry_run ]] || command -v "$1" >/dev/null || die "there is no $1 here: $2"
}

# A folder as it is meant: bash leaves the ~ of --workdir=~/x as it is, and behind a slash at the end the folder above would not be found.
plain_folder() {
  local folder=$1
  case $folder in
  \~) folder=$HOME ;;
  \~/*) folder=$HOME/${folder:2} ;;
  esac
  while [[ $folder == ?*/ ]]; do folder=${folder%/}; done
  printf '%s\n' "$folder"
}

# The trainer's flags: a config that the machines will have, and a workdir that outlives them, and that all of them see, as $1 begins: with "" it is a
# folder, and the project itself lies where the machines see it. Sets workdir. Where a launcher makes slices, the trainer is told how many. $2 is the
# number of devices, where the launcher knows it.
check_trainer_flags() {
  local flag file="" slices="" index=0 place_of_workdir
  workdir=""
  for flag in ${ARGS[@]+"${ARGS[@]}"}; do
    [[ $flag != -[!-]* ]] || flag=-$flag # which absl takes as well
    [[ $flag == --?*=* || $flag =~ ^--(no)?config\.[a-z_]+\.[a-z_0-9]+$ || $flag == --*logtostderr ]] || # the last two are yes or no
      die "the trainer's flag '$flag' has no value: each is one word, --name=value."
    [[ $flag == *[[:cntrl:]]* ]] && die "a flag of the trainer holds a line break or another control character: $(printf %q "$flag")."
    case $flag in
    --workdir=*) workdir=${flag#*=} place_of_workdir=$index ;;
    --config.mesh.slices=*) slices=${flag#*=} ;;
    --config=*)
      file=${flag#*=}
      file=${file%%:*}
      file=${file#./}
      [[ -z $1 || $file != /* ]] || die "the machines have no $file: put the config into configs/, and write --config=configs/..."
      [[ -f $file && $file == /* || -f $place/$file ]] || die "the config file $file does not exist in $place."
      [[ -z $1 || " $shipped " == *" ${file%%/*} "* ]] ||
        die "the config file $file is not among what the machines get of $root: put it into configs/."
      ;;
    --config.?* | --noconfig.?* | --go_back_to=* | --verbosity=* | --v=* | --log_dir=* | --stderrthreshold=* | --*logtostderr) ;;
    *) die "the trainer has no flag ${flag%%=*}: it has --config, --config.SECTION.KEY, --workdir and --go_back_to." ;;
    esac
    index=$((index + 1))
  done
  [[ -n $workdir && -n $file ]] || die "the trainer needs --config and --workdir, each with =: -- --config=configs/... --workdir=$1..."
  [[ $workdir == "$1"* ]] || die "--workdir=$workdir must begin with $1: only there all machines see it, and it is still there after a pre-emption."
  [[ ! $workdir =~ ^[A-Za-z0-9.+-]+:/ || $workdir =~ ^(gs|s3):// ]] ||
    die "--workdir=$workdir is no place for a run: name a folder, or one in a bucket, gs://BUCKET/FOLDER or s3://BUCKET/FOLDER."
  [[ $workdir != *://* || $workdir =~ ^[a-z0-9]+://[^/]+/+[^/] ]] ||
    die "--workdir=$workdir must name a bucket and a folder in it: gs://BUCKET/FOLDER."
  [[ -n $opt_dry_run || ! $workdir =~ ^[a-z0-9]+://[^/]*[A-Z] ]] ||
    die "--workdir=$workdir names no bucket, whose name has no capitals: put yours in its place."
  [[ ! $workdir =~ ^~[^/] ]] || die "--workdir=$workdir is in the home of somebody, which is not looked up here: write its whole path."
  workdir=$(plain_folder "$workdir")
  ARGS[place_of_workdir]=--workdir=$workdir
  if [[ -n ${opt_slices-} ]]; then
    [[ ${slices:-$opt_slices} == "$opt_slices" ]] ||
      die "--slices=$opt_slices and --config.mesh.slices=$slices differ: give --slices alone, the trainer is told."
    [[ -n $slices || $opt_slices == 1 ]] || ARGS+=("--config.mesh.slices=$opt_slices")
  fi
  ask_trainer "$1" "${2-}"
}

# ask_trainer gs:// 16: what the trainer itself says of its flags, for so many devices, where it is installed here: it would say it on every machine,
# once those were paid for. Where it is not installed, or is broken, nothing is said. A config file may name slices as well, or a text that the
# machines do not get. --slices=2 goes before it, as a flag does; with one slice no flag is given, and what it names would only fail on the machines.
ask_trainer() {
  local python=${CHECKER-$root/.venv/bin/python} words code="
from cdcd_jax import doors, train
from cdcd_jax.config import UserError, from_dict
from cdcd_jax.data import places
from cdcd_jax.parallel import mesh
def look():
    config = from_dict(train.CONFIG.value)
    slices = config.mesh.slices
    if '${opt_slices-}' not in ('', str(slices)):
        raise UserError(f'--slices=${opt_slices-} and the config\'s mesh.slices={slices} differ: give --slices={slices}, or change the config.')
    for path in places.relative(config.data) if '$1' else []:
        if path.split('/')[0] not in '$shipped'.split():
            where = 'lay what is there, or for a text what prepare makes of it (docs/DATA.md), where they see it'
            raise UserError(f'the machines have no {path}: {where}, at $1...')
    if '$2':
        mesh.sizes(config, int('$2'))
doors.run(look)"
  command -v "$python" >/dev/null || return 0
  words=$(cd "$place" && "$python" -c "$code" "${ARGS[@]}" 2>&1 >/dev/null </dev/null)
  [[ $? != 2 ]] || die "$(grep '^error: ' <<<"$words" | tail -n 1 | cut -c 8-)"
}

# A word as one may type it, quoted only where it must be.
quoted() {
  local word out=()
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word="'${word//\'/\'\\\'\'}'"
    out+=("$word")
  done
  echo "${out[*]}"
}

# Runs a command, or with --dry-run prints it.
act() {
  if [[ -n $opt_dry_run ]]; then quoted "$@"; else "$@"; fi
}

# With --dry-run: what happens between the commands.
note() {
  [[ -z $opt_dry_run ]] || echo "# $*"
}

# A child that a signal ends before it has become its command still has this trap, and would remove what the launcher goes on with. So the shell that
# runs it is asked for its number: $$ is the launcher's in all its children, and bash 3.2 has no BASHPID.
make_scratch() {
  scratch=$(mktemp -d) || die "cannot make a temporary folder."
  trap '[[ $(exec sh -c "echo \$PPID") != "$$" ]] || rm -rf "$scratch"' EXIT
}

# The code of a job, of its processes' codes: 1 (an error of the program) or 2 (a user's mistake) if any process ended so, never tried again; else 130
# (Ctrl-C), else any other failure's, else 75 (asked for, killed by a signal, or gone without a code), else 0.
verdict() {
  local code again=0 failed=0
  for code in "$@"; do
    case $code in
    0) ;;
    1 | 2) echo "$code" && return ;;
    130) failed=130 ;;
    75 | gone | 12[89] | 1[3-9]?) again=75 ;;
    *) ((failed)) || failed=$code ;;
    esac
  done
  echo $((failed ? failed : again))
}

# The name of the first process whose code is the job's; $1 is the job's code, then NAME=CODE ... follow.
culprit() {
  local code=$1 pair
  shift
  for pair in "$@"; do
    [[ ${pair##*=} == "$code" || ($code == 75 && ${pair##*=} != 0) ]] && echo "${pair%=*}" && return
  done
}

# tpu v5e:4x4: sets chips, accelerator (gcloud's and xpk's name), label (GKE's), grid and runtime; `plan` calls topologies alike.
# The shapes are the default one of each size: only these follow from the name alone.
tpu() {
  local flat="1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16" cubes="2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16"
  local known kind=${1%%:*}
  [[ ! $1 =~ ^([1-9][0-9]*)x(v[^:]*:.*)$ ]] ||
    die "--topology=$1 is how plan writes several slices: here it is --topology=${BASH_REMATCH[2]} --slices=${BASH_REMATCH[1]}."
  grid=${1#*:}
  case $kind in
  v4) known=$cubes cores=2 accelerator=v4 label=tpu-v4-podslice runtime=tpu-ubuntu2204-base ;;
  v5e) known=$flat cores=1 accelerator=v5litepod label=tpu-v5-lite-podslice runtime=v2-alpha-tpuv5-lite ;;
  v5p) known="$cubes 16x16x16 16x16x24" cores=2 accelerator=v5p label=tpu-v5p-slice runtime=v2-alpha-tpuv5 ;;
  v6e) known=$flat cores=1 accelerator=v6e label=tpu-v6e-slice runtime=v2-alpha-tpuv6e ;;
  *) die "unknown topology '$1': it is a chip and a shape, v4:, v5e:, v5p: or v6e: with one of its shapes, as in v5e:4x4 or v5p:4x4x4." ;;
  esac
  [[ " $known " == *" $grid "* ]] || die "unknown topology '$1': $kind has the shapes $known."
  chips=$((${grid//x/*}))
  accelerator=$accelerator-$((chips * cores))
}
