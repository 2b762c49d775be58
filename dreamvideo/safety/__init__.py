"""Below every room: values, text, names and paths from outside, checked where they come in."""
