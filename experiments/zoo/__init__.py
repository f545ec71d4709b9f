"""Networks of many kinds: what the library costs and gains on them."""
