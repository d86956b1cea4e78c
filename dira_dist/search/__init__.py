"""What a search is, without Ray and without MLflow: its section, its suggestions, its ranking, its pictures."""
