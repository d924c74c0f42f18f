"""One module per dataset: its layout, its quirks, and `records(root, ...)`."""
