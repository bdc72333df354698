# shellcheck shell=bash disable=SC2034 # what is set here is for those that source it
# Sourced by the scripts of this folder: --name=value flags, messages, and commands that --dry_run only prints.
set -euo pipefail

dry_run=''
train_flags=() # clip-jax's own, given after --

die() {
  printf '%s: error: %s\n' "${0##*/}" "$1" >&2
  exit 2
}

# parse "NAME NAME ..." ARGUMENT...: puts the value of each --NAME=VALUE into the variable NAME.
parse() {
  local _known=$1 _argument _flag # no flag's name
  shift
  while (($#)); do
    _argument=$1
    shift
    case $_argument in
      --)
        train_flags=("$@")
        return
        ;;
      -h | --help)
        sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
        exit 0
        ;;
      --dry_run) dry_run=1 ;;
      --*=*)
        _flag=${_argument%%=*}
        _flag=${_flag#--}
        [[ " $_known " == *" $_flag "* ]] || die "unknown flag --$_flag: use --${_known// /, --}; clip-jax's own follow --"
        printf -v "$_flag" %s "${_argument#*=}"
        ;;
      *) die "unexpected argument $_argument: flags are --name=value; clip-jax's own follow --" ;;
    esac
  done
}

# need NAME EXAMPLE: a flag that cannot be left out.
need() {
  [[ -n ${!1} ]] || die "--$1 is missing: for instance --$1=$2"
}

# tool COMMAND WHERE_FROM
tool() {
  [[ -n $dry_run ]] || command -v "$1" >/dev/null || die "$1 is not installed: $2"
}

run() {
  if [[ -n $dry_run ]]; then
    quoted "$@"
  else
    "$@"
  fi
}

# The arguments as one line that bash reads back as they were.
quoted() {
  local line
  printf -v line '%q ' "$@"
  printf '%s\n' "${line% }"
}

# pack FILE: what a host needs of this clone, as it lies here, committed or not.
pack() {
  local root
  root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
  [[ -e $root/pyproject.toml ]] || die "$root is not a clone of the repository, and hosts get what is there"
  tar -C "$root" --exclude=__pycache__ -czf "$1" pyproject.toml README.md LICENSE clip_jax configs input_pipeline
}
