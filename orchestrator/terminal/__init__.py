"""Shared terminal input and output of the commands."""
