"""Write the report of a run: tables, figures, HTML page, Markdown."""
