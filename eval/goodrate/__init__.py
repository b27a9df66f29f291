"""GoodRate of a result log: judge, raters, and both by prediction-powered inference."""
