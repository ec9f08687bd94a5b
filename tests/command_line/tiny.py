"""The smallest study that can be planned: one zoo model, no pairs."""

STUDY_FILE = """
[study]
name = "tiny"
[dataset]
kind = "digits"
[models]
universe = "digits-zoo"
include = ["softmax-raw"]
[complementarity]
pairs = 0
[transfer]
pairs = 0
"""
