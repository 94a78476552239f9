"""Parts that several reranking functions share."""
