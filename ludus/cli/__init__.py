"""The face: one verb per stage. It reads a recipe, prints, and calls the recipe's page."""
