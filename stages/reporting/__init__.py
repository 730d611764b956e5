"""What the report shows: the leaderboard, the claims, the analyses of the data, and the page they stand on."""
