"""Values only: grids, images, label maps, cases, label tables and errors. Needs nothing but NumPy."""
