"""Published figures, tables and plots."""
