#!/usr/bin/env bash
# Trains on a Cloud TPU slice of any number of hosts; the same command resumes after a preemption.
# usage: tpu_pod.sh start|watch --name=NAME --zone=ZONE --type=v5litepod-256 --config=NAME --workdir=gs://BUCKET/PATH
#                   [--data=gs://BUCKET/PATH] [--cache_mb=N] [--spot=1] [--project=P] [--runtime=VERSION] [--poll_s=60]
#                   [--dry_run] [-- CLIP_JAX_FLAGS]
#        tpu_pod.sh status|logs|stop|delete --name=NAME --zone=ZONE
# start asks for the slice where there is none, waits for it, installs on all hosts and trains detached.
# watch does so, and again after each preemption, until the training has ended. stop saves a checkpoint; delete ends costs.

source "$(dirname "${BASH_SOURCE[0]}")/flags.sh"

verb=${1:-}
(($# == 0)) || shift
case $verb in
  start | watch | status | logs | stop | delete) ;;
  -h | --help) parse '' --help ;;
  *) die "say start, watch, status, logs, stop or delete first; --help tells the flags" ;;
esac
name='' zone='' type='' config='' data='' workdir='' cache_mb='' spot='' project='' runtime='' poll_s=60
parse 'name zone type config data workdir cache_mb spot project runtime poll_s' "$@"
need name clip
need zone us-west4-a
tool gcloud "see https://cloud.google.com/sdk/docs/install, then gcloud auth login"
where=(--zone="$zone")
[[ -z $project ]] || where+=(--project="$project")

on_hosts() { # on_hosts all|0 COMMAND...
  local worker=$1
  shift
  run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker="$worker" --command="$(quoted "$@")"
}

# Of the queued resource; nothing where there is none, and in a dry run.
state() {
  [[ -n $dry_run ]] ||
    gcloud compute tpus queued-resources describe "$name" "${where[@]}" --format='value(state.state)' 2>/dev/null || true
}

create() {
  local options=()
  [[ -z $spot ]] || options+=(--spot)
  run gcloud compute tpus queued-resources create "$name" --node-id="$name" "${where[@]}" \
    --accelerator-type="$type" --runtime-version="$runtime" \
    --scopes=https://www.googleapis.com/auth/cloud-platform "${options[@]}" # for gcsfuse
}

delete() {
  run gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet
}

acquire() {
  local now
  while true; do
    now=$(state)
    echo "$name: ${now:-no such slice}"
    case $now in
      ACTIVE) return ;;
      '') create || die "$name was not granted" ;;
      SUSPENDED | FAILED) delete || die "what a preemption left of $name could not be deleted" ;;
    esac
    [[ -z $dry_run ]] || return 0
    sleep "$poll_s"
  done
}

start() {
  local archive code=0
  acquire
  archive=$(mktemp -d)
  pack "$archive/clip_jax.tar.gz"
  { # no `set -e` where a caller asks how this ended
    run gcloud compute tpus tpu-vm scp "$archive/clip_jax.tar.gz" "$name:clip_jax.tar.gz" "${where[@]}" --worker=all &&
      on_hosts all bash -euc "mkdir -p clip_jax_code; tar -C clip_jax_code -xzf clip_jax.tar.gz
        GCS_CACHE_MB=\$1; export GCS_CACHE_MB; shift; exec clip_jax_code/clip_jax/launch/host.sh start \"\$@\"" \
        start "$cache_mb" "$data" "$workdir" --config="$config" "${train_flags[@]}"
  } || code=$?
  rm -r "$archive"
  return "$code"
}

watch() {
  local now
  while true; do
    start || [[ $(state) != ACTIVE ]] || die "$name could not be set up"
    while [[ $(state) == ACTIVE ]]; do
      sleep "$poll_s"
      now=$(on_hosts 0 clip_jax_code/clip_jax/launch/host.sh status 2>/dev/null) || now='out of reach'
      echo "$name: $now"
      case $now in
        'exit 0' | stopped) return ;;
        exit\ *)
          sleep "$poll_s" # a slice that is taken away fails first
          [[ $(state) != ACTIVE ]] || die "the training failed; $0 logs --name=$name --zone=$zone shows why"
          ;;
        none) break ;; # started anew, without the training
      esac
    done
    echo "$name: taken away; it resumes from the newest checkpoint"
  done
}

case $verb in
  start | watch)
    need type v5litepod-16
    need config clip_vit_b32
    need workdir gs://BUCKET/runs/vit_b32
    [[ $workdir == gs://* ]] || die "--workdir=$workdir must be gs://BUCKET/PATH: the hosts share nothing else"
    case $type in # https://cloud.google.com/tpu/docs/runtimes
      v6e-*) : "${runtime:=v2-alpha-tpuv6e}" ;;
      v5p-*) : "${runtime:=v2-alpha-tpuv5}" ;;
      v5litepod-*) : "${runtime:=v2-alpha-tpuv5-lite}" ;;
      v4-*) : "${runtime:=tpu-ubuntu2204-base}" ;;
      *) die "--type=$type is not known here: v4-N, v5litepod-N, v5p-N or v6e-N" ;;
    esac
    if [[ $verb == start || -n $dry_run ]]; then start; else watch; fi
    ;;
  status)
    echo "$name: $(state)"
    on_hosts all clip_jax_code/clip_jax/launch/host.sh status
    ;;
  logs) on_hosts 0 clip_jax_code/clip_jax/launch/host.sh logs ;;
  stop) on_hosts all clip_jax_code/clip_jax/launch/host.sh stop ;;
  delete) delete ;;
esac
