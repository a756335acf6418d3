"""The configuration while it is in service: where it comes from, and how a change of it is taken."""
