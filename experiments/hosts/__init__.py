"""Programs over a network: two hosts on one machine, and what messages between them take."""
