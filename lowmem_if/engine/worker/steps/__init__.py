"""What a worker does in one step of a plan: texts, images or postprocessing, from folder to folder."""
