#!/usr/bin/env bash
# On each TPU VM: installs, mounts, and trains detached; tpu_pod.sh calls it on all of them.
# usage: host.sh start DATA WORKDIR [CLIP_JAX_FLAGS]   does nothing where the training runs already
#        host.sh status                                prints none, running, stopped or "exit N"
#        host.sh logs | stop                           stop: with a checkpoint

source "$(dirname "${BASH_SOURCE[0]}")/flags.sh"

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
state=$HOME/clip_jax_run
venv=$HOME/clip_jax_venv

running() { # after a restart of the machine the number may be another's
  [[ -e $state/pid ]] && grep -qsa host.sh "/proc/$(<"$state/pid")/cmdline"
}

status() {
  if running; then # asked first: at its end it writes the code, then it is gone
    echo running
  elif [[ -e $state/exit_code && -e $state/stopped ]]; then
    echo stopped
  elif [[ -e $state/exit_code ]]; then
    echo "exit $(<"$state/exit_code")"
  else
    echo none # a new machine, or one that was taken away in the middle
  fi
}

install() {
  command -v uv >/dev/null || python3 -m pip install -q --user uv # brings a Python where the image's is too old
  uv venv -q --allow-existing --python=3.12 "$venv"
  uv pip install -q --python="$venv" -e "$here/../..[tpu]"
}

# The training; again when it received SIGTERM and this machine stays, as after maintenance.
supervise() {
  local code=143
  echo $$ >"$state/pid"
  while ((code == 143)) && [[ ! -e $state/stopped ]]; do
    code=0
    "$here/train.sh" "$venv/bin/clip-jax" "$@" &
    echo $! >"$state/training_pid"
    wait $! || code=$?
  done
  echo "$code" >"$state/exit_code"
}

export PATH=$HOME/.local/bin:$PATH
mkdir -p "$state"
case ${1:-} in
  start)
    shift
    (($# >= 2)) || die "usage: host.sh start DATA WORKDIR [CLIP_JAX_FLAGS]"
    if running; then
      echo "$(hostname): the training runs already"
      exit
    fi
    install
    rm -f "$state/stopped" "$state/exit_code" "$state/pid"
    nohup setsid "$0" supervise "$@" >>"$state/log" 2>&1 </dev/null &
    until [[ -s $state/pid ]]; do sleep 0.1; done # or who asks next would hear that there is none
    echo "$(hostname): started"
    ;;
  supervise)
    shift
    supervise "$@"
    ;;
  status) status ;;
  logs) tail -n 50 "$state/log" ;;
  stop)
    touch "$state/stopped"
    ! running || kill -TERM "$(<"$state/training_pid")"
    ;;
  *) die "say start, status, logs or stop" ;;
esac
