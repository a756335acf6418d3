"""vLLM endpoints: one file per family, each turning a request into replies or events."""
