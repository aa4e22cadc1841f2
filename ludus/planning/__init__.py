"""What a run will need, told before it runs: memory, time, tokens and money, and whether to train at all."""
