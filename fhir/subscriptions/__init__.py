"""Who is told of signed reports, and how."""
