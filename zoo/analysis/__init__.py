"""What attention says about a prediction: rollout, flow, distance, importance of heads, relevance.

All of it works on any mixer that has an attention map between positions; ``zoo.viz`` draws it, ``zoo explain`` is the
command.
"""
