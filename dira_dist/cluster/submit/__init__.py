"""Jobs handed to a cluster: through Ray Jobs, or as manifests for Kubernetes."""
