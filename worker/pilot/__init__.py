"""One worker process: what claims jobs, keeps their leases and ends in time."""
