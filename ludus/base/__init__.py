"""What every floor stands on: errors, configuration, files, seeds, console. Knows nothing of text, models, training."""
