"""The interface to Slurm: commands, limits, job lists, and the meaning of job states and exit codes."""
