"""What scripts/bench.py is made of: load, the hosts of `make up`, two endpoints, reports."""
