"""The made-up town: places, questions, and pairs whose labels are computed under the rule book of local life."""
