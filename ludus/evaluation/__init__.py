"""What a model can do: questions, intervals, paired comparison, and the report a person opens."""
