"""Teachers and students: what lies in a folder, what it is, and how it is read and written."""
