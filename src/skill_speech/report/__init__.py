"""What a person looks at: figures, tables, the model card."""
