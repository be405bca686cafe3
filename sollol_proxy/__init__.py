"""One address in front of several Ollama hosts."""

__version__ = "0.1.0"
