"""Data cards, installed as the package ``nearkin_cards``; README.md says what is in them."""
