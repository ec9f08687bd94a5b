"""Starting workers: on this machine, or on Slurm. Both go through submitit; both only add what is missing."""
