"""The two Lua scripts that run in Redis: look up and lease, and store.

A script is what lets one command carry many keys: redis-py's cost is per command, and a lease must be taken in the same
round trip that finds a key absent. Every key is declared, so Cluster and ACL rules see them. In Cluster all keys of
a call share one hash tag.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from redis.asyncio import RedisCluster
from redis.exceptions import NoScriptError

from ..redis_client import Client

MAX_KEYS = 256
"""Keys of one call: far below what Lua can unpack, and what keeps Redis busy for long."""


class Script:
    """A script and its digest, by which Redis knows it once it has seen it."""

    __slots__ = ("digest", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.digest = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

    async def run(self, client: Client, keys: Sequence[bytes], *args: bytes | int) -> Any:
        """Run it. Raises what redis-py raises."""
        target: dict[str, Any] = {}
        if isinstance(client, RedisCluster):
            # Named here, or redis-py computes the slot of every key, twice.
            await client.initialize()
            target["target_nodes"] = client.get_node_from_key(keys[0])  # type: ignore[arg-type] # bytes are fine
        try:
            return await client.execute_command("EVALSHA", self.digest, len(keys), *keys, *args, **target)
        except NoScriptError:  # a new server, or one that was emptied
            return await client.execute_command("EVAL", self.text, len(keys), *keys, *args, **target)


# ARGV: our lease, its milliseconds (0: take none), the longest value wanted.
# Answers a value for each key: the lease where it was taken now, nil where the key is absent and no lease could be
# had (memory full, or something that is no string), the empty string for what is too long to be ours.
LOOK = Script("""
local found = redis.call('MGET', unpack(KEYS))
local leasing = ARGV[2] ~= '0'
local longest = tonumber(ARGV[3])
for i = 1, #KEYS do
    local value = found[i]
    if value then
        if #value > longest then found[i] = '' end
    elseif leasing then
        local set = redis.pcall('SET', KEYS[i], ARGV[1], 'NX', 'PX', ARGV[2])
        if set and set.err then
            if not string.find(set.err, 'OOM', 1, true) then return set end
            leasing = false
        elseif set then
            found[i] = ARGV[1]
        end
    end
end
return found
""")

# ARGV: our lease, then for each key a value and its milliseconds. An empty value is about our lease, if it is still
# there: 0 milliseconds frees it, more prolong it. Answers how many values memory was too full for.
STORE = Script("""
local refused = 0
for i = 1, #KEYS do
    local value, ms = ARGV[2 * i], ARGV[2 * i + 1]
    local done = nil
    if value ~= '' then
        done = redis.pcall('SET', KEYS[i], value, 'PX', ms)
    else
        local lease = redis.pcall('GET', KEYS[i])
        if lease == ARGV[1] then
            if ms == '0' then done = redis.pcall('DEL', KEYS[i])
            else done = redis.pcall('PEXPIRE', KEYS[i], ms) end
        end
    end
    if type(done) == 'table' and done.err then
        if not string.find(done.err, 'OOM', 1, true) then return done end
        refused = refused + 1
    end
end
return refused
""")
