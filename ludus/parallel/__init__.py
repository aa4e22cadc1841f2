"""One process or many: the mesh that sums over ranks, and recomputation. Surgery from outside: no model is told."""
