"""The kinds of job: their files composed of sections, and what can be known of them before anything starts."""
