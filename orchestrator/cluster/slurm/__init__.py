"""What kt-study knows of Slurm: its commands, its limits, its job list, and what its endings mean."""
