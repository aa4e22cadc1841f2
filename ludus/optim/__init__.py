"""How parameters move: groups by role, AdamW, Muon, and schedules as functions of the step."""
