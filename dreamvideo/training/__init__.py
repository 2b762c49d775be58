"""Training methods as rows, their settings and data, the one loop, and its resumable state."""
