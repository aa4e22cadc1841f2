"""One process or many: the mesh that sums over ranks, and recomputation. Surgery from outside; the model does not know."""
