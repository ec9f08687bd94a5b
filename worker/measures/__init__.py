"""Measures of a pair of classifiers, or of a student before and after a transfer. Arrays in, numbers out; no torch.

- pair.py: one ordered pair (teacher, student).
- allpairs.py: every ordered pair of many models, in one pass over bits (kernels.py, compiled by numba).
- transfer.py: a student before and after a transfer, against its teachers.
- class_similarity.py: similarity of two classes, by embeddings.py, clip_text.py, wordnet.py or sentence_model.py.
"""
