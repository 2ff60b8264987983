"""What fits best: the joint embedding, search, consensus and reranking."""
