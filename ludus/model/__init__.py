"""The transformer: its settings, layers, heads, cost, and exchange with Hugging Face formats."""
