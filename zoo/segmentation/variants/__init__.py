"""Named segmenters, one file a family. Classes are named by dotted paths, so that listing names imports no network."""
