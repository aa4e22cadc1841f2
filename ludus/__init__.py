"""ludus: one library, one command line and one local studio from raw text to an assistant.

Nothing is imported here: `import ludus` costs nothing, and each floor is imported by name.
"""

__version__ = "0.1.0"
