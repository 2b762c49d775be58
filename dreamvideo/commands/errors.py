"""What went wrong, as one sentence for people."""

from __future__ import annotations

from ..safety.texts import one_line


def explain(error: Exception) -> str:
    """What went wrong, in one line."""
    text = one_line(str(error))
    if isinstance(error, ValueError):
        return text
    if isinstance(error, MemoryError) or "out of memory" in text or "allocate memory" in text:
        from ..devices import explain_shortage

        return explain_shortage(error)
    if isinstance(error, ModuleNotFoundError):
        return f'The library {error.name} is not installed; pip install "dreamvideo[standalone]" brings it.'
    if isinstance(error, OSError) and error.strerror:
        return one_line(f"{error.filename or 'A file'}: {error.strerror}.")
    return f"Unexpected {type(error).__name__}: {text or 'no message'} (--debug shows where)."
