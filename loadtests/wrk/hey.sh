#!/bin/sh
# As much as the gateway takes, one body over and over: hits alone.
. "$(dirname "$0")/common.sh"
need hey "apt install hey"
one_body
timeout -k 5 $((SECONDS_LONG + 30)) hey -z "${SECONDS_LONG}s" -c "$CONNECTIONS" -m POST -T application/json -D "$ONE" "$URL"
