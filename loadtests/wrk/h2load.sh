#!/bin/sh
# As much as the gateway takes, one body over and over: hits alone.
. "$(dirname "$0")/common.sh"
need h2load "apt install nghttp2-client"
one_body
timeout -k 5 $((SECONDS_LONG + 30)) h2load --h1 -t1 -c"$CONNECTIONS" -D"$SECONDS_LONG" -d "$ONE" \
  -H 'content-type: application/json' --log-file="${LOG:-/dev/null}" "$URL"
