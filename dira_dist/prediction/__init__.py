"""Files in, a model, and tables, masks and features out; without Ray."""
