"""One W&B server, asked directly: GraphQL, file_stream and signed URLs."""
