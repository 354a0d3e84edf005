"""From what people name (folders, globs, manifests, URLs) to source files at hand."""
