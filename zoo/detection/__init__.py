"""Object detection: the DETR family, from feature maps to boxes."""
