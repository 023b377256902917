"""Networks by name, and what every one of them promises."""
