"""Files ⇔ values: volumes, dataset layouts, checks, repairs and the store of prepared cases."""
