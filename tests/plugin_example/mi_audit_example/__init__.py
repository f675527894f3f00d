"""One of each thing that a plugin can add to mi-audit."""
