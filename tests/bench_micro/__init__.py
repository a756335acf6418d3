"""Single steps of a request, timed one by one. `make bench` runs and prints them; `make test` does not collect them."""
