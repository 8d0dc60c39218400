"""Named medical networks, one file a system; importing them is what registers them."""
