"""Photographs, masks and clips in; videos, animations and pictures out."""
