"""Cluster files for Google Cloud, your own hosts and Kubernetes; see docs/cluster.md."""
