"""What Python programs and notebooks call; ``segbench/__init__.py`` exports it."""
