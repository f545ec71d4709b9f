"""A guard against getting slower: ratios to the tuned sequential programs, beside a record of them."""
