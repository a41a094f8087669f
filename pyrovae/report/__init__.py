"""What a person looks at: labelled results, plots, one page."""
