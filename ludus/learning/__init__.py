"""The one loop, the objectives it minimises, the hooks it calls and the checkpoints it leaves."""
