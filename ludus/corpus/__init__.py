"""From sources to clean documents on disk: reading, cleaning, deduplication, splitting; and checkable exercises."""
