"""Ways out of the pipeline: the HTML report and its pictures. Imports neither torch nor monai."""
