#!/usr/bin/env bash
# The project as a container image, by launch/Dockerfile: built here, and pushed to where the cluster finds it.
#
#   launch/image.sh --image=REGION-docker.pkg.dev/PROJECT/REPOSITORY/cdcd_jax:TAG [--accelerator=tpu|cuda12|cuda13|cpu] [--no-push] [--dry-run]
#
# The image's entry point is launch/worker.sh: its arguments are the trainer's flags.

# shellcheck disable=SC2154 # read_options sets opt_...
set -uo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

read_options "image= accelerator= no-push" "$@"
required image
((${#ARGS[@]} == 0)) || die "the image takes no flags of the trainer."
check_accelerator "${opt_accelerator:=tpu}"
need docker "install it from https://docs.docker.com/engine/install."
make_scratch

removal="docker image rm $opt_image"
if ! act docker build --platform=linux/amd64 --file="$launch/Dockerfile" --build-arg="ACCELERATOR=$opt_accelerator" --tag="$opt_image" "$root"; then
  docker info >/dev/null 2>"$scratch/words" && die "the image was not built: docker says why above."
  words=$(words_of "$scratch/words")
  die "the image was not built: $words; $(hint_for "$words" "$removal")."
fi
[[ -n $opt_no_push ]] || try_to "push $opt_image" "$removal" docker push "$opt_image"
