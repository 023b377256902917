"""Ways out of a mask: DICOM objects that a PACS and its viewers take."""
