"""What every floor stands on: errors, configuration, files, seeds and the console. Knows nothing of text, models or training."""
