"""Converts between relevance judgements and text: prompts, answers, chat templates, verdict tokens. Every stage uses this code."""
