"""What Prometheus and Grafana are given: every expression is written once, and the files are made from the lists."""
