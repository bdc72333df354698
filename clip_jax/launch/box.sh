#!/usr/bin/env bash
# Trains on this machine with all its GPUs, one process or several, and restarts when the training alone receives SIGTERM.
# usage: box.sh --config=NAME --workdir=DIR [--data=PATH] [--processes=1] [--port=8476] [--clip_jax=COMMAND]
#               [--dry_run] [-- CLIP_JAX_FLAGS]
# SIGTERM or Ctrl-C to this script ends all with a checkpoint; the same command resumes from there.

source "$(dirname "${BASH_SOURCE[0]}")/flags.sh"

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
config='' workdir='' data='' processes=1 port=8476
clip_jax=$here/../../.venv/bin/clip-jax
[[ -x $clip_jax ]] || clip_jax=clip-jax
parse 'config workdir data processes port clip_jax' "$@"
need config clip_vit_b32
need workdir runs/vit_b32
tool "$clip_jax" "pip install -e '.[gpu]', or give --clip_jax=COMMAND"
[[ $processes =~ ^[1-9][0-9]*$ ]] || die "--processes=$processes must be a number from 1"
if [[ -z $dry_run ]]; then workdir=$("$here/gcs.sh" workdir "$workdir"); fi

devices=()
if [[ -n ${CUDA_VISIBLE_DEVICES:-} ]]; then
  IFS=, read -ra devices <<<"$CUDA_VISIBLE_DEVICES"
elif command -v nvidia-smi >/dev/null; then
  mapfile -t devices < <(nvidia-smi --query-gpu=index --format=csv,noheader)
fi
share=$((${#devices[@]} / processes))
((share * processes == ${#devices[@]})) || die "${#devices[@]} GPUs do not divide among --processes=$processes"

pids=() stopped='' interrupted=''
# shellcheck disable=SC2329 # the trap calls it
stop() {
  stopped=1 interrupted=1
  ((${#pids[@]} == 0)) || kill -TERM "${pids[@]}" 2>/dev/null || true
}
trap stop TERM INT

start() {
  local i visible command
  pids=()
  for ((i = 0; i < processes; i++)); do
    command=("$here/train.sh" "$clip_jax" "$data" "$workdir" --config="$config")
    ((processes == 1)) || command+=(--coordinator="localhost:$port" --num_processes="$processes" --process_id="$i")
    command+=("${train_flags[@]}")
    if ((processes > 1 && share > 0)); then
      visible=$(IFS=, && printf %s "${devices[*]:i*share:share}")
      command=(env CUDA_VISIBLE_DEVICES="$visible" "${command[@]}")
    fi
    if [[ -n $dry_run ]]; then
      quoted "${command[@]}"
      continue
    fi
    setsid "${command[@]}" >>"$workdir/logs/process_$i.log" 2>&1 & # Ctrl-C reaches them through this script alone
    pids+=($!)
  done
}

# The exit code of all: a failure's before 143's, 143 before 0.
wait_for_all() {
  local pid code worst=0
  for pid in "${pids[@]}"; do
    while true; do
      interrupted='' code=0
      wait "$pid" || code=$?
      [[ -n $interrupted ]] || break
    done
    ((code == 0 || (worst != 0 && worst != 143))) || worst=$code
  done
  return "$worst"
}

if [[ -n $dry_run ]]; then
  start
  exit
fi
mkdir -p "$workdir/logs"
echo "logs are in $workdir/logs: tail -F $(quoted "$workdir/logs/process_0.log")"
while true; do
  code=0
  start
  wait_for_all || code=$?
  ((code == 143)) && [[ -z $stopped ]] || break
  echo "the training received SIGTERM and has saved a checkpoint: it resumes"
done
((code == 0)) || tail -n 3 "$workdir/logs/process_0.log" >&2
exit "$code"
