"""The documentation as a site: what MkDocs builds from README.md, docs/ and, for the reference, from the sources."""
