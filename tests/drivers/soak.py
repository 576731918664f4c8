"""All drivers at once, for long."""
