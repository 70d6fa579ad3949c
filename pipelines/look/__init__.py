"""Looking at runs and at preference data: figures, tables, pages."""
