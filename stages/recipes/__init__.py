"""What `python -m stages.recipe` does beside writing one: it proposes a recipe for images and plans its cost."""
