#!/bin/sh
# At a constant rate: wrk2 where it is, with the corpus, its latencies counted from when a request was due. Elsewhere
# h2load, which keeps the rate too but sends one body and counts from when it was sent.
. "$(dirname "$0")/common.sh"
export BODIES
if command -v wrk2 >/dev/null; then
  bounded wrk2 -t2 -c"$CONNECTIONS" -d"${SECONDS_LONG}s" -R"$RPS" --latency -s "$HERE/corpus.lua" "$URL"
fi
need h2load "apt install nghttp2-client"
one_body
EACH=$((RPS / CONNECTIONS))
[ "$EACH" -ge 1 ] || { CONNECTIONS=$RPS; EACH=1; }
timeout -k 5 $((SECONDS_LONG + 30)) h2load --h1 -t1 -c"$CONNECTIONS" --rps="$EACH" -D"$SECONDS_LONG" -d "$ONE" \
  -H 'content-type: application/json' --log-file="${LOG:-/dev/null}" "$URL"
