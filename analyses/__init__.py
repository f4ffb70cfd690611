"""Results in; statistics, figures and tables out. Imports no torch and nothing else of this project."""
