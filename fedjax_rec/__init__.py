"""fedjax_rec: a JAX-accelerated, vectorized simulator of federated recommender systems."""
