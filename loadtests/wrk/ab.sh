#!/bin/sh
# As much as the gateway takes, one body over and over: hits alone. -l: answers may differ in length.
. "$(dirname "$0")/common.sh"
need ab "apt install apache2-utils"
one_body
timeout -k 5 $((SECONDS_LONG + 30)) ab -q -k -l -t "$SECONDS_LONG" -n 10000000 -c "$CONNECTIONS" -p "$ONE" -T application/json "$URL"
