"""What a session does as a whole: its windows, its summaries, its end."""
