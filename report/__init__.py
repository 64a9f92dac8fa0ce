"""From experiments to a book that can be checked: runs, records, tables, claims, figures, pages."""
