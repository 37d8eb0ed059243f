"""The context layer between an LLM application and its data."""
