"""The whole way on one machine, with synthetic images and an S3 server of its own."""
