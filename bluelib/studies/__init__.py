"""What the project measures: one module a study."""
