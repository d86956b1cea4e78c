"""One job on Ray: the driver, the workers, and what passes between them."""
