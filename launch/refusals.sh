# shellcheck shell=bash
# What a platform's command says when it refuses, in one sentence with what mends it; launch/common.sh has it for all launchers.
# shellcheck disable=SC2154 # common.sh and read_options set what is read here

# The platform's own words for a failure, in one line: its last error, or else its last line.
words_of() {
  awk '{ sub(/\r$/, "") }
       /^[^ ]*:? ?(ERROR|error|Error): / || /^#####/ { words = ""; found = 1 }
       NF { words = found ? (words == "" ? $0 : words " " $0) : $0 }
       END { print words }' "$1" |
    sed -E 's/^[^ ]*:? ?(ERROR|error|Error): //; s/^\(gcloud[^)]*\) //; s/[[:space:]]+/ /g; s/^[-# ]+//; s/[. ]+$//' | cut -c 1-400
}

# What mends a refusal, by the platform's words; $2 is how to remove what has that name. The first that fits counts: a service that is switched off,
# and scopes that are missing, are told with PERMISSION_DENIED as well, and a plugin that is missing with "credentials".
hint_for() {
  local image=${opt_image-}
  case $1 in
  *"permission denied"*[Dd]"ocker daemon"* | *"permission denied"*docker.sock*)
    echo "let this account use docker: sudo usermod -aG docker $(id -un)"
    ;;
  *[Dd]"ocker daemon"*) echo "start it: sudo systemctl start docker, or open Docker Desktop" ;;
  *"basic auth"* | "denied: "* | *"registry: denied: "* | "unauthorized: "* | *"Unauthenticated request"*) # docker's, and no file's
    echo "log docker in with gcloud auth configure-docker ${image%%/*}, by an account that may write there (Artifact Registry Writer)"
    ;;
  *ALREADY_EXISTS* | *AlreadyExists* | *"already exists"*) echo "the name is taken: choose another, or remove that one with: $2" ;;
  *"not been used"* | *SERVICE_DISABLED*) echo "switch the service on: gcloud services enable tpu.googleapis.com container.googleapis.com" ;;
  *"quota project"*) echo "name the project that is asked for it: gcloud auth application-default set-quota-project P" ;;
  *[Qq]uota* | *QUOTA*) echo "ask for quota, or name another zone or a smaller topology" ;;
  *"authentication scopes"* | *SCOPE_INSUFFICIENT*)
    echo "log in anew: gcloud auth login (without it one of Google's machines has only the scopes that it was made with: it needs cloud-platform)"
    ;;
  *core/project* | *"property [project]"*) echo "name the project: --project=P, or gcloud config set project P" ;;
  *gke-gcloud-auth-plugin*"not found"*) echo "install it: gcloud components install gke-gcloud-auth-plugin" ;;
  *"nvalid partition"* | *"node configuration is not available"*) echo "what the cluster has: sinfo --format='%P %D %G %l'" ;;
  *"nvalid account"* | *"nvalid qos"*) echo "what you may name: sacctmgr show associations user=$(id -un) format=account,partition,qos" ;;
  *publickey*) echo "put your key into the agent: ssh-add ~/.ssh/google_compute_engine" ;;
  *"auth login"* | *credentials* | *Unauthorized* | *"You must be logged in"*) echo "log in: gcloud auth login" ;;
  *PERMISSION_DENIED* | *orbidden* | *"do not have permission"* | *[Ii]"nsufficient permission"* | *[Ii]"nsufficient Permission"*)
    echo "the account or the project is not the right one: gcloud config list"
    ;;
  *"no more capacity"* | *[Ii]nsufficient* | *RESOURCE_EXHAUSTED* | *RESOURCE_POOL_EXHAUSTED* | *"not have enough resources"*)
    echo "try another zone, or --spot"
    ;;
  *ccelerator*"not found"* | *NOT_FOUND*cceleratorType*) echo "what the zone has: gcloud compute tpus accelerator-types list --zone=ZONE" ;;
  *"no matches for kind"* | *"resource type"*jobset* | *"unknown field"*)
    echo "the cluster needs JobSet $jobset_version or later: launch/gke/jobset.sh setup"
    ;;
  *"connection to the server"* | *"current-context"*)
    echo "point kubectl at the cluster: gcloud container clusters get-credentials NAME --location=ZONE"
    ;;
  *) echo "nothing was tried again" ;;
  esac
}
jobset_version=v0.10.1 # the first with onJobFailureMessagePatterns whose manifests are whole; xpk 1.16 installs it as well

# Ends with the launcher's sentence $absent where the platform's last words, which match $absent_words then, say that nothing has that name.
absent="" absent_words=""
say_absent() {
  [[ -z $absent_words ]] || ! grep -qE "$absent_words" "$scratch/words" 2>/dev/null || die "$absent"
}

# try_to "make X" "command that removes X" COMMAND...: runs it (or shows it); when it fails says so in one sentence and ends.
try_to() {
  local what=$1 removal=$2 words
  shift 2
  if [[ -n $opt_dry_run ]]; then
    quoted "$@"
  elif ! "$@" </dev/null 2>"$scratch/words"; then
    say_absent
    words=$(words_of "$scratch/words")
    die "could not $what: ${words:-$1 says why above}; $(hint_for "$words" "$removal")."
  fi
}
