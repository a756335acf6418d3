"""Suites of load: a corpus of questions, scenarios for k6, Locust and plain generators, and what judges a run."""
