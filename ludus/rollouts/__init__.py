"""Generate and score to make batches: episodes, verifiable rewards, advantages."""
