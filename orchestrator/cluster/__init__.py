"""Where workers run: starting them, Slurm, the checks of `doctor`, the PostgreSQL server."""
