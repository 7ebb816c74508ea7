"""What a conversation holds: an engine's slots and all that is known of them, kept in bounds and perhaps on disk."""

from edgemem.runtime.memory.memory import Memory

__all__ = ["Memory"]
