"""The run folder: the only state of a run. Every file in it is written whole or not at all.

run.json            format, versions, plan (with request and machine), status of every step
sources/            the user's pictures that the run begins with
embeds/             prompt embeddings
stage_1/ stage_2/ stage_3/   NNNN.safetensors and NNNN.png of every image
memory.jsonl        memory samples
notices.jsonl       what the user should know about the pictures
NNNN.png            finished images
in_making/          on request: NNNN.png, a preview of the image that is being drawn
gallery.html        for a batch, or on request: all images on one page; thumbs/ belongs to it
worker.log          what the libraries printed
"""
