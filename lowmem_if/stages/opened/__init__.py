"""A stage as a user opens it: diffusers' own pipeline, over networks that are guarded."""
