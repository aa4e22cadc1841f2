"""Instructions with checkable answers, made by seeded generators: what teaches a base model to answer.

Training and held-out exercises are split by the problem itself, whatever its wording, so no held-out problem is ever
seen in training.
"""
