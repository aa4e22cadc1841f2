"""Run folders: the lock, the manifest with its lineage, and the log of metrics. What a stage writes besides weights."""
