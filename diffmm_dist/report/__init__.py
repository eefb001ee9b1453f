"""What one or several runs have come to, as one page that needs nothing else (docs/report.md)."""
