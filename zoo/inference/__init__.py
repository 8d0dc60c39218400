"""What predictions of all tasks share: sources of images, the pipeline around the network, results."""
