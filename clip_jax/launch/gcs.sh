#!/usr/bin/env bash
# Prints the local path of a gs:// path, after mounting its bucket with gcsfuse where that is not done yet.
# usage: gcs.sh data|workdir gs://BUCKET/PATH
# Any other path is printed as it is. Environment:
#   GCS_ROOT      where buckets are mounted, default ~/gcs
#   GCS_CACHE_MB  local disk that data may fill, only where all of it fits: a record read then brings its whole file

source "$(dirname "${BASH_SOURCE[0]}")/flags.sh"

(($# == 2)) && [[ $1 == data || $1 == workdir ]] || die "usage: gcs.sh data|workdir gs://BUCKET/PATH"
if [[ $2 != gs://* ]]; then
  printf '%s\n' "$2"
  exit
fi
kind=$1
name=${2#gs://}
bucket=${name%%/*}
root=${GCS_ROOT:-$HOME/gcs}
mount=$root/$kind/$bucket
[[ -n $bucket ]] || die "$2 names no bucket: gs://BUCKET/PATH"

install_gcsfuse() {
  local keyring=/usr/share/keyrings/cloud.google.asc
  curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee "$keyring" >/dev/null
  echo "deb [signed-by=$keyring] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -cs) main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  sudo apt-get -qq update
  sudo apt-get -qq install gcsfuse
}

mkdir -p "$mount"
exec 9>"$root/.lock" # several processes of a host may ask at once
flock 9
if ! mountpoint -q "$mount"; then
  command -v gcsfuse >/dev/null || install_gcsfuse
  if [[ $kind == data ]]; then # nobody changes it
    flags=(-o ro --implicit-dirs --metadata-cache-ttl-secs=-1 --stat-cache-max-size-mb=-1)
    if [[ -n ${GCS_CACHE_MB:-} ]]; then
      flags+=(--cache-dir="$root/cache/$bucket" --file-cache-max-size-mb="$GCS_CACHE_MB")
      flags+=(--file-cache-cache-file-for-range-read)
    fi
  else # hosts see at once what another one writes, and fsync leaves it in the bucket
    flags=(--implicit-dirs --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0)
    flags+=(--enable-streaming-writes=false --rename-dir-limit=0) # a flat bucket refuses to rename folders
  fi
  gcsfuse "${flags[@]}" "$bucket" "$mount" >&2 9>&-
fi
printf '%s\n' "$root/$kind/$name"
