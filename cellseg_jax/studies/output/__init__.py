"""What is written of the table of a study: page, Markdown, LaTeX, CSV, sentences."""
