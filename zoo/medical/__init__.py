"""Medical images: networks for 2-D and 3-D segmentation and classification, and what bags of patches are read by."""
