"""The model half of the simulator: time, tokens, text and metrics, without any I/O."""
