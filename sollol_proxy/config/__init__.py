"""Configuration: the schema with every default, and the loader that names each mistake."""
