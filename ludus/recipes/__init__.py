"""Each stage on one page: parts assembled, no logic of its own. Presets are YAML beside the code."""
