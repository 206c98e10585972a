"""What peers ask beside storage: worklist, steps, commitment, query, retrieve."""
