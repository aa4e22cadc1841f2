"""The local studio: pages for runs and chat, and an OpenAI-compatible server, on loopback only."""
