"""A node beside the PACS: studies in, segmentations and measurements out, a status page, and masks over HTTP."""
