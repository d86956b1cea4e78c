"""Files in, a model, and tables and masks out; without Ray."""
