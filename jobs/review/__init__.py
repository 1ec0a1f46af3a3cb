"""What people say of slides: kept line by line, shown in the viewer, and given back to training."""

from .review import Review

__all__ = ["Review"]
