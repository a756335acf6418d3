"""`penstock sim`: a simulator that speaks vLLM's HTTP API, breaks on demand, and counts what it sees.

The folder reads from the outside in: `main` (command line) starts `server` (listeners), which makes a
`connection` for every client; each request becomes an `exchange` that `simulator` routes to `api/`.
`model/` decides what is said and when. `faults` says what goes wrong, `sabotage` does it.
"""
