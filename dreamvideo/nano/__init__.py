"""The embedded base: a ModelScope in miniature, the toy world it was trained on and the recipe that trained it."""
