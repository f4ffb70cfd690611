"""What several questions lean on: no command and no result file here."""
