"""Running things: a cell of a table, notebooks with their parameters, a grid, the workflow."""
