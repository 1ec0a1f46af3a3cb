"""The browser viewer: worklist, slide page and review, served from this machine."""
