"""What every room of the worker knows of a job."""
