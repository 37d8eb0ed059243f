"""Change capture: triggers that leave outbox rows for what other software changes."""
