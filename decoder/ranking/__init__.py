"""How well captions match pictures: the joint embedding, search, consensus and reranking."""
