"""One component each: loaded, run and freed behind one `with`."""
