"""Everything that is to be measured on a GPU, by one command, beside what a model says beforehand."""
