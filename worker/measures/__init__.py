"""What a pair of classifiers, or a student before and after, say about each other. Arrays in, numbers out; no torch.

- pair.py: one ordered pair (teacher, student).
- allpairs.py: every ordered pair of many models, in one pass over bits (kernels.py, compiled by numba).
- transfer.py: a student before and after a transfer, against its teachers.
- class_similarity.py: how alike two classes are, by embeddings.py, clip_text.py, wordnet.py or sentence_model.py.
"""
