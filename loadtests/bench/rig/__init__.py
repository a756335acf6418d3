"""The rig: processes, load generators and backends. It knows nothing of what is being compared."""
