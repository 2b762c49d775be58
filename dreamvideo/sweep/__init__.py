"""Many trainings and videos as one plan: what it consists of, who makes it, what is missing, and what came out."""
