# What the plain generators share; read by the scripts beside it. Everything is told by the environment:
#   TARGET       http://127.0.0.1:PORT: a load stays on this machine
#   BODIES       a file of request bodies, one a line (`penstock corpus --bodies`)
#   SECONDS_LONG how long, whole seconds        CONNECTIONS  at one time
#   RPS          requests a second, for constant.sh alone
set -eu
: "${TARGET:=http://127.0.0.1:8080}" "${BODIES:=corpus.bodies}"
: "${SECONDS_LONG:=60}" "${CONNECTIONS:=64}" "${RPS:=10000}"
printf '%s\n' "$TARGET" | grep -Eqx 'http://(127(\.[0-9]+){3}|localhost)(:[0-9]+)?' || {
  echo "TARGET=$TARGET: a load stays on this machine: http://127.0.0.1:PORT" >&2
  exit 2
}
URL="$TARGET/v1/chat/completions"
HERE=$(dirname "$0")

need() { # PROGRAM PACKAGE: say what is missing
  command -v "$1" >/dev/null || { echo "$1 is not installed: $2" >&2; exit 3; }
}

bounded() { # whatever it does, it ends
  exec timeout -k 5 $((SECONDS_LONG + 30)) "$@"
}

one_body() { # most of these send one body over and over: the corpus's first, of the first lap
  ONE=$(mktemp)
  head -n 1 "$BODIES" | tr -d '\n' | sed 's/@lap@/00000/' >"$ONE"
  trap 'rm -f "$ONE"' EXIT
}
