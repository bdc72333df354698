#!/usr/bin/env bash
# Becomes `clip-jax train`, with gs:// paths mounted: what every process of every host runs.
# usage: train.sh CLIP_JAX DATA WORKDIR [CLIP_JAX_FLAGS]
# CLIP_JAX is the command, DATA may be empty.

source "$(dirname "${BASH_SOURCE[0]}")/flags.sh"

(($# >= 3)) || die "usage: train.sh CLIP_JAX DATA WORKDIR [CLIP_JAX_FLAGS]"
clip_jax=$1
gcs=$(dirname "${BASH_SOURCE[0]}")/gcs.sh
data=$("$gcs" data "$2")
workdir=$("$gcs" workdir "$3")
shift 3
[[ -z $data ]] || set -- "$@" --config.data.path="$data" # a key of --config, which the flags begin with
exec "$clip_jax" train --workdir="$workdir" "$@"
