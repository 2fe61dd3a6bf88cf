"""Training scripts. Nothing here is imported by `import dblr_fast`."""
