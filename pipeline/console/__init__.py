"""What a person sees in the terminal: progress bars, tables, closing lines."""
