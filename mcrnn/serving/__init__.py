"""A model behind HTTP: replicas on Ray Serve that compute, and a gateway that reads requests and follows the alias."""
