#!/usr/bin/env bash
# Trains on TPU slices of a GKE cluster that XPK made; restarts after a preemption are the cluster's.
# usage: gke.sh prepare|start --name=NAME --cluster=C --zone=Z --project=P --type=v5litepod-256 --image=REGISTRY/IMAGE
#               --config=NAME --workdir=gs://BUCKET/PATH [--data=gs://BUCKET/PATH] [--slices=1] [--max_restarts=20]
#               [--dry_run] [-- CLIP_JAX_FLAGS]
#        gke.sh stop --name=NAME --cluster=C --zone=Z --project=P
# prepare builds and pushes the image and makes the buckets known to the cluster, once; start submits the training.

source "$(dirname "${BASH_SOURCE[0]}")/flags.sh"

verb=${1:-}
(($# == 0)) || shift
case $verb in
  prepare | start | stop) ;;
  -h | --help) parse '' --help ;;
  *) die "say prepare, start or stop first; --help tells the flags" ;;
esac
name='' cluster='' zone='' project='' type='' image='' config='' workdir='' data='' slices=1 max_restarts=20
parse 'name cluster zone project type image config workdir data slices max_restarts' "$@"
need name clip
need cluster my-cluster
need zone us-west4-a
need project my-project
tool xpk "pip install xpk, see https://github.com/AI-Hypercomputer/xpk"
where=(--cluster="$cluster" --zone="$zone" --project="$project")

bucket_of() {
  local path=${1#gs://}
  printf %s "${path%%/*}"
}

attach() { # attach data|workdir gs://BUCKET/PATH READONLY MOUNT_OPTIONS
  local bucket
  bucket=$(bucket_of "$2")
  run xpk storage attach "$1-$bucket" "${where[@]}" --type=gcsfuse --size=1 --bucket="$bucket" \
    --mount-point="/gcs/$1/$bucket" --readonly="$3" --auto-mount=false --mount-options="$4"
}

prepare() {
  local folder
  tool docker "see https://docs.docker.com/engine/install"
  folder=$(mktemp -d)
  pack "$folder/clip_jax.tar.gz"
  mkdir "$folder/context"
  tar -C "$folder/context" -xzf "$folder/clip_jax.tar.gz"
  run docker build -t "$image" -f "$folder/context/clip_jax/launch/Dockerfile" "$folder/context"
  rm -r "$folder"
  run docker push "$image"
  local caches=metadata-cache:ttl-secs:0,metadata-cache:negative-ttl-secs:0
  local writes=write:enable-streaming-writes:false,file-system:rename-dir-limit:0 # see gcs.sh
  attach workdir "$workdir" false "implicit-dirs,$caches,$writes"
  [[ -z $data ]] || attach data "$data" true implicit-dirs,metadata-cache:ttl-secs:-1
}

start() {
  local storage command
  storage=workdir-$(bucket_of "$workdir")
  command=(exec clip-jax train --workdir="/gcs/workdir/${workdir#gs://}" --config="$config")
  if [[ -n $data ]]; then
    storage+=,data-$(bucket_of "$data")
    command+=(--config.data.path="/gcs/data/${data#gs://}")
  fi
  # When a node is lost the processes on the others end with 1, like a mistake does; 143 restarts anyway.
  run xpk workload create --workload="$name" "${where[@]}" --tpu-type="$type" --num-slices="$slices" \
    --docker-image="$image" --storage="$storage" --max-restarts="$max_restarts" --restart-on-exit-codes=1 \
    --termination-grace-period-seconds=300 --command="$(quoted "${command[@]}" "${train_flags[@]}")"
}

case $verb in
  stop) run xpk workload delete --workload="$name" "${where[@]}" ;;
  *)
    need type v5litepod-16
    need image us-docker.pkg.dev/my-project/clip/clip_jax
    need config clip_vit_b32
    need workdir gs://BUCKET/runs/vit_b32
    for path in "$workdir" ${data:+"$data"}; do
      [[ $path == gs://?* ]] || die "$path must be gs://BUCKET/PATH: the pods share nothing else"
    done
    "$verb"
    ;;
esac
