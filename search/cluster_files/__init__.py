"""Cluster files: check and launch configurations of providers and KubeRay."""
