"""Objectives: pure functions `(model, batch) -> sums` over the batch's own units.

The loop divides by the global count of units; nothing here averages, samples or asks a frozen model.
"""
