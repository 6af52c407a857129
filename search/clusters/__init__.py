"""Cluster files for other places than AWS: Google Cloud, hosts of your own, Kubernetes; docs/cluster.md."""
