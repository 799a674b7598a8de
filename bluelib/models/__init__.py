"""A model: its parts, how it is loaded, what goes on inside, and what it answers."""
