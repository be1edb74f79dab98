"""How denoising steps follow one another: the scheduler's name, and what may be left out."""
