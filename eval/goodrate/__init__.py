"""GoodRate of a result log, estimated from a judge, from raters, and from both by prediction-powered inference."""
