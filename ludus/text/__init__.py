"""Between text and token ids: tokenizers, their training and comparison, and the one chat template."""
