"""Input and output of a job, used by every subpackage of the worker."""
