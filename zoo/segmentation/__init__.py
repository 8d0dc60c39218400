"""Segmentation: semantic, instance and panoptic, from feature maps to masks."""
