"""What a pool would cost: a trace of requests, replayed through the real machine under a clock that is not."""
