"""Realignment: what brings a merged model's heads and features together again."""
