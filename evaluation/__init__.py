"""From captions to scores and pictures of them: the official toolkit and the report."""
