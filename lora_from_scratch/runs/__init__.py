"""One run: asked, decided, trained, evaluated, recorded, and left in a folder."""
