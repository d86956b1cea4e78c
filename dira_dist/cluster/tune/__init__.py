"""A search on Ray Tune: which trials are run, and what is known of them."""
