#!/bin/sh
# As much as the gateway takes: the corpus in its order, every lap new questions. Hits and misses as they come.
. "$(dirname "$0")/common.sh"
need wrk "apt install wrk"
export BODIES
bounded wrk -t2 -c"$CONNECTIONS" -d"${SECONDS_LONG}s" --timeout 30s -s "$HERE/corpus.lua" "$URL"
