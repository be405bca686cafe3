"""What Ollama's wire looks like. Pure: bytes and values in, values and bytes out."""
