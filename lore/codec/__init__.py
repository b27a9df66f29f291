"""The one translation between relevance and text: prompts, judgements, chat templates, verdict tokens."""
