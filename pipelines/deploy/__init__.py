"""Files that deploy a bundle: container, Kubernetes, KServe, Ray Serve."""
