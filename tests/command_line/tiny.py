"""The smallest study that can be planned: two zoo models, no pairs."""

STUDY_FILE = """
[study]
name = "tiny"
[dataset]
kind = "digits"
[models]
universe = "digits-zoo"
include = ["digits/resnet_b", "digits/mixer_a"]
[complementarity]
pairs = 0
[transfer]
pairs = 0
"""
