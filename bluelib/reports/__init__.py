"""Published numbers, tables and plots."""
