"""Starts workers, on this machine or on Slurm. Both use submitit; both add only missing workers."""
