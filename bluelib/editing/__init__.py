"""The method: targets, residuals, solvers and constraints, the editors made of them, and a sequence of edits."""
