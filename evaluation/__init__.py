"""From captions to scores: the official toolkit, confidence intervals, tables and the report."""
