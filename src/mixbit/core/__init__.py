"""The words: schemes, tables, plans, budgets, tasks, batches, targets and errors."""
