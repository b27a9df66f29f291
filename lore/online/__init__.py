"""The service: answers relevance requests at the lowest allowed price, from the cache, the student or the judge."""
