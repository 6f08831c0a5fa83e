"""Searches: from a table and a budget to a plan. Arrays only, never torch; one method a file."""
