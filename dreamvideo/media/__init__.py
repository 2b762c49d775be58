"""Photographs, masks and clips in; videos, animations and pictures out.

Images are float32 in 0..1, [3, H, W] or [N, 3, H, W]; masks are 0 or 1, [1, H, W]. What cannot be read or is of no use
raises ValueError in one sentence.
"""
