"""One worker process: claims jobs, renews their leases and exits in time."""
